"""Draws the experiment: memory waste, throughput over concurrency, latency at low and high load."""

from importlib import import_module
from pathlib import Path
from typing import Any

from tests.benchmarks.allocation import System

_COLOURS = {
    System.PAGED: "#0072b2",
    System.RESERVED: "#e69f00",
    System.CONTIGUOUS: "#7f7f7f",
}
_MARKERS = {System.PAGED: "o", System.RESERVED: "s", System.CONTIGUOUS: "^"}
_BAR_WIDTH = 0.26


def draw(report: dict[str, Any], path: Path) -> None:
    """Write an SVG file. Raises ModuleNotFoundError where matplotlib is not installed."""
    matplotlib = import_module("matplotlib")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "experiment", "svg.fonttype": "none"})
    figure = import_module("matplotlib.figure").Figure(figsize=(14, 4.2), layout="constrained")
    waste, throughput, latency = figure.subplots(1, 3, width_ratios=[1, 1.1, 1.3])
    _draw_waste(waste, report["waste"])
    _draw_throughput(throughput, report["throughput"])
    _draw_latency(latency, report["latency"])
    figure.savefig(path, metadata={"Date": None})


def _draw_waste(axes: Any, wastes: dict[str, dict[str, dict[str, float]]]) -> None:
    rows = [{s: 100 * of[s]["waste"] for s in System} for of in wastes.values()]
    _draw_bars(axes, list(wastes), rows, "{:.1f} %")
    axes.set_title("KV memory allocated and not used")
    axes.set_ylabel("% of allocated, mean over time")
    axes.set_ylim(0, 115)
    axes.legend(loc="upper left", ncols=3, fontsize=8, frameon=False)


def _draw_throughput(axes: Any, rates: dict[str, dict[str, dict[str, float]]]) -> None:
    concurrencies = {int(name.split()[0]): row for name, row in rates.items()}
    for system in System:
        axes.plot(
            sorted(concurrencies),
            [concurrencies[c][system]["tokens_per_s"] for c in sorted(concurrencies)],
            marker=_MARKERS[system],
            color=_COLOURS[system],
            label=system,
        )
    axes.set_title("Throughput")
    axes.set_xlabel("requests in flight")
    axes.set_ylabel("output tokens / s")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)


def _draw_latency(axes: Any, loads: dict[str, dict[str, dict[str, float]]]) -> None:
    low, *higher = loads
    groups = [(low, "ttft_p50_s", "TTFT p50")]
    groups += [(load, key, name) for load in higher for key, name in _TAILS]
    labels = [f"{name}\n{load}" for load, _, name in groups]
    rows = [{s: loads[load][s][key] for s in System} for load, key, _ in groups]
    _draw_bars(axes, labels, rows, "{:.2g}")
    axes.set_yscale("log")
    axes.set_title("Latency")
    axes.set_ylabel("seconds")
    axes.margins(y=0.1)


_TAILS = (("ttft_p99_s", "TTFT p99"), ("e2e_p99_s", "whole p99"))


def _draw_bars(axes: Any, labels: list[str], rows: list[dict[System, float]], form: str) -> None:
    for i, system in enumerate(System):
        places = [group + (i - 1) * _BAR_WIDTH for group in range(len(labels))]
        values = [row[system] for row in rows]
        bars = axes.bar(places, values, _BAR_WIDTH, color=_COLOURS[system], label=system)
        axes.bar_label(bars, [form.format(value) for value in values], fontsize=7, padding=1)
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
