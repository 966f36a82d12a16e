"""Cost of the serving path: the HTTP endpoint against the bare engine, same prompts.

Starts `pageray serve` on the default model, loads it over HTTP, and compares time to first token
and CPU seconds per token with the offline engine's. Run alone on the machine.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path

import psutil

from engine.model_store import DEFAULT_MODEL, resolve_model
from tests.benchmarks.load import Timing, run_load
from tests.benchmarks.throughput import measure
from tests.benchmarks.workload import WORKLOADS, make_asks
from tests.integration.serving import Serving


def cpu_seconds(serving: Serving) -> float:
    """CPU time of every process of the service."""
    total = 0.0
    for process in [psutil.Process(serving.process.pid), *serving.processes()]:
        times = process.cpu_times()
        total += times.user + times.system
    return total


def load(serving: Serving, name: str, seed: int) -> dict[str, float]:
    """Run one workload over HTTP."""
    workload = WORKLOADS[name]
    asks = make_asks(workload, vocab_size=49152, seed=seed)
    before = cpu_seconds(serving)
    timings: list[Timing]
    timings, wall_s = asyncio.run(
        run_load("127.0.0.1", serving.port, DEFAULT_MODEL, asks, workload.concurrency)
    )
    num_tokens = sum(timing.num_tokens for timing in timings)
    ttfts = sorted(timing.ttft_s for timing in timings)
    return {
        "tokens_per_s": num_tokens / wall_s,
        "ttft_s": statistics.median(ttfts),
        "ttft_p99_s": ttfts[int(0.99 * (len(ttfts) - 1))],
        "cpu_s_per_token": (cpu_seconds(serving) - before) / num_tokens,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="A,B,C")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "pageray")
    options = parser.parse_args()
    model = resolve_model(DEFAULT_MODEL, cache_dir=options.cache_dir)
    names = options.workloads.split(",")
    http: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    bare: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            serving = Serving(DEFAULT_MODEL, log=Path(folder) / "log")
            try:
                serving.wait_ready()
                load(serving, "A", seed=1000 + seed)  # warm-up
                for name in names:
                    http[name].append(load(serving, name, seed))
            finally:
                serving.stop()
        for name in names:
            bare[name].append(measure("pageray", model, name, seed))
    report = {}
    for name in names:
        through = {key: statistics.median(run[key] for run in http[name]) for key in http[name][0]}
        engine = {key: statistics.median(run[key] for run in bare[name]) for key in bare[name][0]}
        report[name] = {"http": through, "engine": engine}
        extra_us = (through["cpu_s_per_token"] - engine["cpu_s_per_token"]) * 1e6
        if WORKLOADS[name].concurrency == 1:
            tail = f"{(through['ttft_s'] - engine['ttft_s']) * 1e3:+.1f} ms on the bare engine's"
        else:
            tail = f"p99 {through['ttft_p99_s'] * 1e3:.0f} ms"
        print(
            f"{name}: {through['tokens_per_s']:.1f} tok/s over HTTP, "
            f"{through['tokens_per_s'] / engine['tokens_per_s']:.2f}x the bare engine; "
            f"TTFT p50 {through['ttft_s'] * 1e3:.1f} ms ({tail}); CPU {extra_us:+.0f} us/token"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
