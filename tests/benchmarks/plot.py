"""A picture of a comparison: tokens/s of every system, workload by workload."""

import importlib.util
from pathlib import Path

from tests.benchmarks.report import Cell, Report


def check_available() -> None:
    """Say so before hours of measuring when the picture cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("--plot needs matplotlib: pip install '.[bench]'")


def draw(report: Report, path: Path) -> None:
    """Write an SVG file: one row of panels for each mode, in each panel a bar for each system."""
    from matplotlib.figure import Figure

    modes = sorted({cell.mode for cell in report.cells})
    workloads = list(report.limits)
    names = list(dict.fromkeys(cell.entry for cell in report.cells))
    size = (2.6 * len(workloads) + 1.5, 2.8 * len(modes) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(modes), len(workloads), squeeze=False)
    colors = {entry: f"C{number}" for number, entry in enumerate(names)}
    for row, mode in zip(panels, modes, strict=True):
        for panel, workload in zip(row, workloads, strict=True):
            shown = [c for c in report.cells if (c.mode, c.workload) == (mode, workload)]
            for cell in shown:
                place = names.index(cell.entry)
                bar = panel.bar(place, _rate(cell), color=colors[cell.entry], width=0.8)
                panel.bar_label(bar, [f"{_rate(cell):.0f}" if cell.median else "-"], fontsize=8)
            panel.axhline(report.limits[workload], color="0.5", linestyle=":", linewidth=1)
            panel.set_title(f"{workload}, {mode}", fontsize=9)
            panel.set_xticks(
                range(len(names)), map(str, names), rotation=60, fontsize=7, ha="right"
            )
            panel.tick_params(axis="y", labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("output tokens/s", fontsize=8)
    floor = report.floor
    figure.suptitle(
        f"SmolLM2-135M, medians of {report.repeats}; dotted: the floor of the machine "
        f"({floor.gflop_per_s:.0f} GFLOP/s, {floor.gb_per_s:.0f} GB/s)",
        fontsize=9,
    )
    figure.savefig(path, format="svg")


def _rate(cell: Cell) -> float:
    return cell.median.tokens_per_s if cell.median else 0.0
