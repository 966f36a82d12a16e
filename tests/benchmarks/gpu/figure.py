"""Draws how near each measured thing came to its ceiling."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write an SVG file; rows without a ceiling are left out. Needs matplotlib."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if "of ceiling" in row]
    figure = Figure(figsize=(8, 0.3 * len(shown) + 1), layout="constrained")
    axes = figure.subplots()
    names = [row["what"] for row in shown]
    axes.barh(names, [100 * row["of ceiling"] for row in shown])
    axes.invert_yaxis()
    axes.axvline(100, color="black", linewidth=1)
    axes.set_xlabel(f"% of what {rows[0]['what']} copies or multiplies, measured in the same run")
    figure.savefig(path, format="svg")
