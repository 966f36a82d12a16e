"""Paging and continuous batching against what came before: memory, throughput, latency.

`make experiment`, alone on the machine. The product, a full reservation and a contiguous allocator
(tests/benchmarks/allocation.py) serve the lengths of real conversations from the same memory, with
the same model and kernels. Prints tables; writes experiment.json and experiment.svg. Run again, it
adds to the figures that are there and shows medians.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from engine.model_store import DEFAULT_MODEL, resolve_model
from tests.benchmarks.allocation import System
from tests.benchmarks.conversation import AS_TRACED, CHAT
from tests.benchmarks.drive import Run, Server
from tests.benchmarks.experiment_figure import draw
from tests.benchmarks.real_engine import LATENCY_LOADS, Bench
from tests.benchmarks.waste import simulate

Row = dict[str, dict[str, float]]
"""Figures by system and name."""
Report = dict[str, dict[str, dict[str, list[dict[str, float]]]]]
"""All that was measured: by part, row and system, a set of figures for each time."""

CONCURRENCIES = [1, 2, 5, 10, 20, 50, 75, 100, 150, 200]
# What the tables show of each row.
COLUMNS = {
    "waste": {
        "allocated and not used": ("waste", "{:.2%}"),
        "allocated / used": ("allocated_per_used", "{:.2f}"),
        "sequences running": ("num_running", "{:.1f}"),
    },
    "throughput": {"output tokens/s": ("tokens_per_s", "{:.1f}")},
    "latency": {
        "requests/s sent": ("sent_per_s", "{:.2f}"),
        "TTFT p50, s": ("ttft_p50_s", "{:.3f}"),
        "TTFT p99, s": ("ttft_p99_s", "{:.3f}"),
        "whole p50, s": ("e2e_p50_s", "{:.3f}"),
        "whole p99, s": ("e2e_p99_s", "{:.3f}"),
    },
}


def show(part: str, name: str, row: Row) -> None:
    """Print one row of a report, and the product's figures by the others'."""
    for title, (key, form) in COLUMNS[part].items():
        values = [row[system][key] for system in System]
        cells = "".join(f"{form.format(value):>12}" for value in values)
        ratios = "".join(f"{values[0] / value:>11.2f}x" for value in values[1:])
        print(f"{name:<26}{title:<24}{cells}{ratios}", flush=True)


def figures(run: Run) -> dict[str, float]:
    """What a report keeps of a run."""
    ttfts = sorted(timing.ttft_s for timing in run.timings)
    e2es = sorted(timing.e2e_s for timing in run.timings)
    return {
        "tokens_per_s": run.tokens_per_s,
        "requests_per_s": len(run.timings) / run.wall_s,
        "waste": run.memory.waste,
        "allocated_per_used": 1 / (1 - run.memory.waste),
        "num_running": run.memory.num_running,
        "num_preemptions": run.num_preemptions,
        "num_requests": len(run.timings),
        "ttft_p50_s": percentile(ttfts, 50),
        "ttft_p99_s": percentile(ttfts, 99),
        "e2e_p50_s": percentile(e2es, 50),
        "e2e_p99_s": percentile(e2es, 99),
    }


def percentile(ordered: list[float], percent: int) -> float:
    """Return the smallest value that so many per cent do not exceed."""
    return ordered[-(-percent * len(ordered) // 100) - 1]


def median_row(runs: dict[str, list[dict[str, float]]]) -> Row:
    """Return each figure's median over the times it was measured."""
    return {
        system: {key: statistics.median(each[key] for each in times) for key in times[0]}
        for system, times in runs.items()
    }


def of_each(bench: Bench, run: Callable[[Server], Run]) -> Row:
    """Measure every system, one after the other."""
    return {system.value: figures(run(server)) for system, server in bench.servers.items()}


def measure_waste() -> Iterator[tuple[str, Row]]:
    """Part (a): simulated, so that lengths are the trace's own."""
    for scale in (CHAT, AS_TRACED):
        yield scale.title, {s.value: figures(simulate(s, scale)) for s in System}


def measure_throughput(bench: Bench, concurrencies: list[int]) -> Iterator[tuple[str, Row]]:
    """Part (b): so many requests in flight at all times."""
    for concurrency in concurrencies:
        yield f"{concurrency} in flight", of_each(bench, partial(bench.run_closed, concurrency))


def measure_latency(bench: Bench, peaks: dict[System, float]) -> Iterator[tuple[str, Row]]:
    """Part (c): requests come at random, at shares of the most that a system has served."""
    for load in LATENCY_LOADS:
        # Not the requests/s of the sweep: where few are in flight its requests are few, too.
        rate = load.share * peaks[load.of] / bench.mean_output_tokens
        row = of_each(bench, partial(bench.run_open, rate, load.num_requests))
        yield load.name, {system: each | {"sent_per_s": rate} for system, each in row.items()}


def peak_rates(report: Report) -> dict[System, float]:
    """Return the output tokens/s of each system at its best concurrency."""
    if "throughput" not in report:
        raise SystemExit("How much load is high? Measure it first: --parts throughput,latency")
    rows = [median_row(runs) for runs in report["throughput"].values()]
    return {system: max(row[system]["tokens_per_s"] for row in rows) for system in System}


def keep(report: Report, part: str, rows: Iterator[tuple[str, Row]], file: Path) -> None:
    """Add what is measured to the report, row by row: the sweep is long."""
    systems = "".join(f"{system:>12}" for system in System)
    ratios = "".join(f"{'/ ' + system:>12}" for system in list(System)[1:])
    print(f"\n{part:<50}{systems}{ratios}", flush=True)
    for name, row in rows:
        runs = report.setdefault(part, {}).setdefault(name, {system: [] for system in System})
        for system, each in row.items():
            runs[system].append(each)
        show(part, name, median_row(runs))
        file.write_text(json.dumps({"machine": platform.platform(), "report": report}, indent=1))


def main() -> None:
    """Measure what is asked for, beside what the file has, and draw all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="waste,throughput,latency")
    parser.add_argument("--concurrencies", type=int, nargs="+", default=CONCURRENCIES)
    parser.add_argument("--out", type=Path, default=Path("build/experiment"))
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "pageray")
    options = parser.parse_args()
    parts = options.parts.split(",")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "experiment.json"
    report: Report = json.loads(file.read_text())["report"] if file.exists() else {}
    if "waste" in parts:
        report.pop("waste", None)  # simulated: always the same
        keep(report, "waste", measure_waste(), file)
    if {"throughput", "latency"} & set(parts):
        bench = Bench(resolve_model(DEFAULT_MODEL, cache_dir=options.cache_dir))
        if "throughput" in parts:
            keep(report, "throughput", measure_throughput(bench, options.concurrencies), file)
        if "latency" in parts:
            keep(report, "latency", measure_latency(bench, peak_rates(report)), file)
    print(f"\n{file}")
    if {"waste", "throughput", "latency"} <= report.keys():
        medians: dict[str, Any] = {
            part: {name: median_row(runs) for name, runs in rows.items()}
            for part, rows in report.items()
        }
        try:
            draw(medians, options.out / "experiment.svg")
        except ModuleNotFoundError as error:
            print(f"No figure: {error}. Install it: .venv/bin/pip install matplotlib")
        else:
            print(options.out / "experiment.svg")


if __name__ == "__main__":
    main()
