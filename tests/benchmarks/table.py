"""The table of a comparison on the terminal."""

from tests.benchmarks.figures import Figures
from tests.benchmarks.report import Cell, Report, ordered

TITLES = (
    ("mode", 8),
    ("wl", 4),
    ("system", 13),
    ("dtype", 9),
    ("tok/s", 8),
    ("ours/it", 8),
    ("of floor", 9),
    ("TTFT p50/p99 ms", 16),
    ("TPOT p50/p99 ms", 16),
    ("ITL p99", 8),
    ("start s", 8),
    ("peak MiB", 9),
    ("CPU ms/tok", 11),
)
NONE = "-"


def header() -> str:
    """The titles."""
    return "".join(title.ljust(width) for title, width in TITLES)


def line(cell: Cell, figures: Figures, ratio: float | None, of_limit: float | None) -> str:
    """One row of figures."""
    values = (
        cell.mode.value,
        cell.workload,
        cell.entry.name,
        cell.entry.dtype,
        f"{figures.tokens_per_s:.1f}",
        NONE if ratio is None else f"{ratio:.2f}x",
        NONE if of_limit is None else f"{of_limit:.0%}",
        _pair(figures.ttft_p50_s, figures.ttft_p99_s),
        _pair(figures.tpot_p50_s, figures.tpot_p99_s),
        _milliseconds(figures.itl_p99_s),
        f"{figures.start_s:.1f}",
        f"{figures.peak_bytes / 2**20:.0f}",
        f"{figures.cpu_s_per_token * 1e3:.2f}",
    )
    pairs = zip(values, TITLES, strict=True)
    return "".join(value.ljust(width) for value, (_, width) in pairs).rstrip()


def skipped(cell: Cell) -> str:
    """One row that says why there are no figures."""
    values = (cell.mode.value, cell.workload, cell.entry.name, cell.entry.dtype)
    pairs = zip(values, TITLES, strict=False)
    reason = cell.skipped.splitlines()[0] if cell.skipped else "not run"
    return "".join(value.ljust(width) for value, (_, width) in pairs) + f"skipped: {reason}"


def summary(report: Report) -> str:
    """The medians."""
    lines = [f"medians of {report.repeats}; peak MiB counts shared pages once", header()]
    for cell in ordered(report.cells):
        if cell.median is not None:
            lines.append(line(cell, cell.median, report.ratio(cell), report.of_limit(cell)))
        if cell.skipped or cell.median is None:
            lines.append(skipped(cell))
    return "\n".join(lines)


def _pair(middle: float | None, high: float | None) -> str:
    return NONE if middle is None else f"{_milliseconds(middle)}/{_milliseconds(high)}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"
