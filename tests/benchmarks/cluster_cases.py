"""Placement in the simulator: every policy in every case, several seeds, with intervals.

    python -m tests.benchmarks.cluster_cases TRACE [--cases base slow] [--seeds 5] [--seconds 100]

A seed is another part of the trace. Policies see the same parts, so their differences are paired.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean

from cluster.policies import POLICIES
from cluster.simulation.replica import ReplicaModel
from cluster.simulation.reports import Reporting
from cluster.simulation.run import Scenario, simulate
from cluster.simulation.shaping import scaled, window, with_burst
from cluster.simulation.summary import Objective, half_interval, summarise
from cluster.simulation.trace import TraceRequest, read_trace

OURS = "kv"
SIMPLE = ("round_robin", "least_requests", "power_of_two", "prefix_hash")
MODEL = ReplicaModel(num_blocks=7_200, block_size=64)
HALF_SPEED = replace(MODEL, speed=MODEL.speed / 2)
NUM_REPLICAS = 12


@dataclass(frozen=True, kw_only=True)
class Case:
    """One change to twelve equal replicas behind one frontend that hears of every step."""

    scenario: Scenario
    burst: tuple[float, float, float] | None = None
    """Start and length in seconds, factor."""
    policies: Sequence[str] = field(default_factory=lambda: tuple(POLICIES))

    def trace(
        self, requests: Sequence[TraceRequest], seconds: float, seed: int, rate: float
    ) -> list[TraceRequest]:
        """Return the part of a trace that a seed stands for."""
        chosen = scaled(window(requests, seconds, seed), rate)
        return chosen if self.burst is None else with_burst(chosen, *self.burst)


def _scenario(**changes: object) -> Scenario:
    return replace(Scenario(replicas=[MODEL] * NUM_REPLICAS), **changes)  # type: ignore[arg-type]


def _reports(period_s: float, num_frontends: int = 1, *, with_tokens: bool = True) -> Case:
    reporting = Reporting(period_s=period_s, with_tokens=with_tokens)
    return Case(
        scenario=_scenario(reporting=reporting, num_frontends=num_frontends), policies=(OURS,)
    )


CASES: Mapping[str, Case] = {
    "base": Case(scenario=_scenario()),
    "slow": Case(scenario=_scenario(replicas=[HALF_SPEED] + [MODEL] * (NUM_REPLICAS - 1))),
    "burst": Case(scenario=_scenario(), burst=(30.0, 5.0, 5.0)),
    "death": Case(scenario=_scenario(deaths=[(50.0, 3)])),
    "lost": Case(
        scenario=_scenario(reporting=Reporting(period_s=0.1, with_tokens=False, lost=0.1, late=0.1))
    ),
    "period 0.1": _reports(0.1),
    "period 1": _reports(1.0),
    "period 10": _reports(10.0),
    "4 frontends": _reports(0.1, 4),
    "16 frontends": _reports(0.1, 16),
    "4 frontends, period 10": _reports(10.0, 4),
    "16 frontends, period 10": _reports(10.0, 16),
    "apart 0.1": _reports(0.1, with_tokens=False),
    "apart 1": _reports(1.0, with_tokens=False),
    "apart 10": _reports(10.0, with_tokens=False),
}


def run_case(
    case: Case, requests: Sequence[TraceRequest], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the goodput of each policy with each seed."""
    goodput: dict[str, list[float]] = {}
    for policy in case.policies:
        if options.policies and policy not in options.policies:
            continue
        for seed in range(options.seeds):
            trace = case.trace(requests, options.seconds, seed, options.rate)
            outcomes = simulate(trace, replace(case.scenario, seed=seed), POLICIES[policy])
            goodput.setdefault(policy, []).append(summarise(outcomes, Objective()).goodput)
    return goodput


def judged(goodput: Mapping[str, Sequence[float]]) -> dict[str, object]:
    """Return means and intervals, and how ours compares with the others."""
    report: dict[str, object] = {
        policy: {"mean": mean(values), "half_interval": half_interval(values), "values": values}
        for policy, values in goodput.items()
    }
    others = [policy for policy in goodput if policy != OURS]
    if OURS in goodput and others:
        best = max(others, key=lambda policy: mean(goodput[policy]))
        paired = [a - b for a, b in zip(goodput[OURS], goodput[best], strict=True)]
        report["best_other"] = best
        report["ahead_of_it"] = {"mean": mean(paired), "half_interval": half_interval(paired)}
        simple = [mean(goodput[policy]) for policy in SIMPLE if policy in goodput]
        if simple:
            report["over_best_simple"] = mean(goodput[OURS]) / max(simple)
    return report


def main() -> None:
    """Print a line for each policy as it comes, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--policies", nargs="*", choices=list(POLICIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--rate", type=float, default=1.0)
    options = parser.parse_args()
    requests = read_trace(options.trace)
    report: dict[str, object] = {"trace": options.trace.name, "model": asdict(MODEL)}
    for name in options.cases:
        started = time.perf_counter()
        result = judged(run_case(CASES[name], requests, options))
        report[name] = result
        took_s = time.perf_counter() - started
        print(f"{name} ({took_s:.0f} s): {json.dumps(result)}", file=sys.stderr, flush=True)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
