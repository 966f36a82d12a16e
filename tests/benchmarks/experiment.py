"""Paging and continuous batching against what came before: memory, throughput, latency.

`make experiment`, alone on the machine. The product, a full reservation and a contiguous allocator
(tests/benchmarks/allocation.py) serve the lengths of real conversations from the same memory, with
the same model and kernels. Writes experiment.json and experiment.svg, and prints tables.
"""

import argparse
import json
import platform
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

Figures = dict[str, dict[str, dict[str, float]]]
"""By row, system and name."""
Rows = Iterator[tuple[str, dict[str, dict[str, float]]]]
"""Rows as they are measured."""

CONCURRENCIES = [1, 2, 5, 10, 20, 50, 75, 100, 150, 200]


def show(row: str, of_systems: dict[str, dict[str, float]], key: str, form: str) -> None:
    """Print one row, the product's value by the others' at its end."""
    values = [of_systems[system][key] for system in System]
    ratios = "".join(f"{values[0] / value:>10.2f}x" for value in values[1:])
    cells = "".join(f"{form.format(value):>12}" for value in values)
    print(f"{row:<34}{cells}{ratios}", flush=True)


def head(title: str) -> None:
    """Print a table's head."""
    systems = "".join(f"{system:>12}" for system in System)
    print(f"\n{title:<34}{systems}   paged / reserved, contiguous", flush=True)


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


def of_each(bench: Bench, run: Callable[[Server], Run]) -> dict[str, dict[str, float]]:
    """Measure every system, one after the other."""
    return {system.value: figures(run(server)) for system, server in bench.servers.items()}


def percentile(ordered: list[float], percent: int) -> float:
    """Return the smallest value that so many per cent do not exceed."""
    return ordered[-(-percent * len(ordered) // 100) - 1]


def measure_waste() -> Rows:
    """Part (a): simulated, so that lengths are the trace's own."""
    head("memory allocated and not used")
    for scale in (CHAT, AS_TRACED):
        row = {system.value: figures(simulate(system, scale)) for system in System}
        show(scale.title, row, "waste", "{:.2%}")
        show("  allocated / used", row, "allocated_per_used", "{:.2f}")
        show("  sequences running, mean", row, "num_running", "{:.1f}")
        yield scale.title, row


def measure_throughput(bench: Bench, concurrencies: list[int]) -> Rows:
    """Part (b): so many requests in flight at all times."""
    head("output tokens/s, in flight")
    for concurrency in concurrencies:
        row = of_each(bench, partial(bench.run_closed, concurrency))
        show(str(concurrency), row, "tokens_per_s", "{:.1f}")
        yield str(concurrency), row


def measure_latency(bench: Bench, throughput: Figures) -> Rows:
    """Part (c): requests come at random, at shares of what the systems can serve."""
    for load in LATENCY_LOADS:
        rate = load.share * max(row[load.of]["requests_per_s"] for row in throughput.values())
        head(f"{load.name}, {rate:.2f} requests/s")
        row = of_each(bench, partial(bench.run_open, rate, load.num_requests))
        for key in ("ttft_p50_s", "ttft_p99_s", "e2e_p50_s", "e2e_p99_s"):
            show(key.removesuffix("_s").replace("_", " ") + ", seconds", row, key, "{:.3f}")
        yield load.name, row


def main() -> None:
    """Measure what is asked for, keep the rest from the last time, draw what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="waste,throughput,latency")
    parser.add_argument("--concurrencies", type=int, nargs="+", default=CONCURRENCIES)
    parser.add_argument("--out", type=Path, default=Path("build/experiment"))
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "pageray")
    options = parser.parse_args()
    parts = options.parts.split(",")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "experiment.json"
    report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def keep(part: str, rows: Rows) -> None:
        """Write after each row: the sweep is long."""
        report["machine"] = platform.platform()
        for name, row in rows:
            report.setdefault(part, {})[name] = row
            file.write_text(json.dumps(report, indent=1))

    if "waste" in parts:
        keep("waste", measure_waste())
    if {"throughput", "latency"} & set(parts):
        bench = Bench(resolve_model(DEFAULT_MODEL, cache_dir=options.cache_dir))
        if "throughput" in parts:
            keep("throughput", measure_throughput(bench, options.concurrencies))
        if "latency" in parts:
            keep("latency", measure_latency(bench, report["throughput"]))
    print(f"\n{file}")
    if {"waste", "throughput", "latency"} <= report.keys():
        try:
            draw(report, options.out / "experiment.svg")
        except ModuleNotFoundError as error:
            print(f"No figure: {error}. Install it: .venv/bin/pip install matplotlib")
        else:
            print(options.out / "experiment.svg")


if __name__ == "__main__":
    main()
