"""PageRay beside vLLM, llama.cpp and transformers: same weights, same prompts, one run.

The systems take turns, repetition by repetition; ratios are of medians. A system is NAME or
NAME:DTYPE; without a dtype it runs in the one that is fastest on this processor. Peers are
installed on first use, each in its own folder of the cache. Run alone on the machine.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from engine.model_store import DEFAULT_MODEL, resolve_model
from tests.benchmarks import cpu, floor, plot, table
from tests.benchmarks.failure import PeerFailed, PeerUnavailable
from tests.benchmarks.report import Cell, Entry, Report
from tests.benchmarks.systems.llama_peer import LlamaCpp
from tests.benchmarks.systems.pageray import PageRay
from tests.benchmarks.systems.system import Mode, Session, System
from tests.benchmarks.systems.transformers_peer import Transformers
from tests.benchmarks.systems.vllm_peer import Vllm
from tests.benchmarks.workload import WARM_UP, WORKLOADS, Workload, make_asks, read_words

NAMES = ("pageray", "vllm", "llama.cpp", "transformers", "padded")


class Comparison:
    """One run over systems, modes and workloads."""

    def __init__(self, model: Path, report: Report, limit_s: float) -> None:
        self._words = read_words(model)
        self._model = model
        self._report = report
        self._limit_s = limit_s

    def system(self, text: str, store: Path) -> System:
        """Make the system that a command line names."""
        name, _, dtype = text.partition(":")
        warm_up = make_asks(WARM_UP, self._words, seed=time.time_ns())
        match name:
            case "pageray":
                return PageRay(self._model, dtype or None, warm_up)
            case "vllm":
                return Vllm(self._model, dtype or None, warm_up, store)
            case "llama.cpp":
                return LlamaCpp(dtype or None, warm_up, store)
            case "transformers" | "padded":
                way = "padded" if name == "padded" else "continuous"
                return Transformers(way, self._model, dtype or None, warm_up, store)
        raise SystemExit(f"unknown system '{text}': use {', '.join(NAMES)}")

    def prepare(self, systems: Sequence[System], modes: Sequence[Mode], names: list[str]) -> None:
        """Fetch what is missing; a system that cannot be had keeps its rows, with the reason."""
        for mode in modes:
            for name in names:
                for system in systems:
                    self._cell(system, mode, name)
        for system in systems:
            try:
                self._report.versions[system.name] = system.prepare()
            except PeerUnavailable as error:
                print(f"skipped {system.name}: {error}", flush=True)
                for cell in self._report.cells:
                    if cell.entry == Entry(system.name, system.dtype):
                        cell.skipped = str(error)

    def run(self, system: System, mode: Mode, names: Sequence[str], seed: int) -> None:
        """One turn of one system: every workload once."""
        with ExitStack() as stack:
            session: Session | None = None
            for name in names:
                cell = self._cell(system, mode, name)
                if cell.skipped:
                    continue
                workload = WORKLOADS[name]
                try:
                    if session is None or not system.keeps_running(mode):
                        stack.close()
                        session = stack.enter_context(system.open(mode, workload, self._limit_s))
                    self._measure(session, cell, workload, seed)
                except (PeerFailed, PeerUnavailable) as error:
                    # What it was doing is unknown, so that the next workload gets a fresh one.
                    session = None
                    cell.skipped = str(error)
                    print(table.skipped(cell), cell.skipped, sep="\n", flush=True)

    def _measure(self, session: Session, cell: Cell, workload: Workload, seed: int) -> None:
        figures = session.measure(workload, make_asks(workload, self._words, seed))
        cell.runs.append(figures)
        of_limit = figures.tokens_per_s / self._report.limits[workload.name]
        print(table.line(cell, figures, None, of_limit), flush=True)

    def _cell(self, system: System, mode: Mode, name: str) -> Cell:
        return self._report.cell(mode, name, Entry(system.name, system.dtype))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="A,B,C,D,E,F")
    parser.add_argument("--systems", default=",".join(NAMES))
    parser.add_argument("--mode", default="http,offline")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300, help="seconds for one workload")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="SVG file")
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "pageray")
    return parser.parse_args()


def main() -> None:
    """Prepare, measure, and write down after every turn what there is."""
    options = parse()
    # A way out that ends the servers: `timeout` and `kill` send this signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    if options.plot:
        plot.check_available()
    names, modes = options.workloads.split(","), [Mode(m) for m in options.mode.split(",")]
    model = resolve_model(DEFAULT_MODEL, cache_dir=options.cache_dir)
    report = Report(options.repeats)
    comparison = Comparison(model, report, options.limit)
    systems = [
        comparison.system(text, options.cache_dir / "peers") for text in options.systems.split(",")
    ]
    comparison.prepare(systems, modes, names)
    print(cpu.describe())
    print(table.header(), flush=True)
    size = floor.read_size(model)
    for seed in range(options.repeats):
        report.floors.append(floor.measure_apart())
        for name in names:
            report.limits[name] = floor.limit_tokens_per_s(WORKLOADS[name], size, report.floor)
        for mode in modes:
            for system in systems:
                comparison.run(system, mode, names, seed)
                if options.json:
                    report.write(options.json)
    best = report.floor
    print(f"floor: {best.gflop_per_s:.0f} GFLOP/s in float32, {best.gb_per_s:.1f} GB/s read")
    print(table.summary(report))
    if options.plot:
        plot.draw(report, options.plot)


if __name__ == "__main__":
    main()
