"""Draws how near each measured thing came to its ceiling, with nothing but what Python brings."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from tests.benchmarks.gpu.bench import Row

_LINE, _BAR, _LABELS, _BARS = 18, 14, 320, 480
"""Height of a line and of its bar; width of the names and of 100 %."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write an SVG file; rows without a ceiling are left out, and the first names the device."""
    shown = [row for row in rows if "of ceiling" in row]
    height = _LINE * (len(shown) + 3)
    title = f"% of what {rows[0]['what']} copies or multiplies, measured in the same run"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABELS + _BARS + 80}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="{_LINE}" font-size="13">{escape(title)}</text>',
    ]
    for i, row in enumerate(shown):
        y = _LINE * (i + 2)
        share = row["of ceiling"]
        width = _BARS * min(share, 1.1)
        parts += [
            f'<text x="{_LABELS - 8}" y="{y + 11}" text-anchor="end">{escape(row["what"])}</text>',
            f'<rect x="{_LABELS}" y="{y}" width="{width:.0f}" height="{_BAR}" fill="steelblue"/>',
            f'<text x="{_LABELS + 4}" y="{y + 11}" fill="white">{100 * share:.0f}</text>',
        ]
    x = _LABELS + _BARS
    parts += [f'<path d="M{x} {2 * _LINE - 4}V{height - 8}" stroke="black"/>', "</svg>"]
    path.write_text("\n".join(parts))
