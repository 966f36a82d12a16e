"""`pageray simulate`: a trace against simulated replicas, by one policy or by all."""

import json
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cluster.policies import POLICIES
from cluster.simulation.replica import ReplicaModel
from cluster.simulation.run import Scenario, simulate
from cluster.simulation.summary import Objective, Summary, as_json, summarise
from cluster.simulation.trace import TraceRequest, read_trace, scaled
from engine.config import Preset
from engine.errors import InvalidConfig

ALL_POLICIES = "all"


def run_simulation(
    trace: list[TraceRequest],
    scenario: Scenario,
    policy: str,
    *,
    ttft_s: float,
    tpot_s: float,
    as_json_text: bool,
) -> None:
    """Run and print. Raises InvalidConfig for a policy that there is not."""
    names = list(POLICIES) if policy == ALL_POLICIES else [policy]
    for name in names:
        if name not in POLICIES:
            known = ", ".join([*POLICIES, ALL_POLICIES])
            raise InvalidConfig(f"There is no policy '{name}'.", f"Use one of {known}.")
    summaries: dict[str, Summary] = {}
    with Progress(console=Console(stderr=True), transient=True) as bars:
        for name in names:
            bar = bars.add_task(name, total=len(trace))
            outcomes = simulate(
                trace,
                scenario,
                POLICIES[name],
                lambda done, bar=bar: bars.update(bar, completed=done),  # type: ignore[misc]
            )
            summaries[name] = summarise(outcomes, Objective(ttft_s, tpot_s))
    if as_json_text:
        typer.echo(json.dumps(as_json(summaries), indent=2))
    else:
        Console().print(_table(summaries))


def load(path: Path, seconds: float | None, rate: float) -> list[TraceRequest]:
    """Return the beginning of a trace, sped up. Raises InvalidConfig where nothing is left."""
    if not rate > 0:
        raise InvalidConfig(f"The rate is {rate:g}.", "Use a value above 0.")
    trace = read_trace(path)
    if seconds is not None:
        trace = [request for request in trace if request.arrival_s < seconds]
    if not trace:
        raise InvalidConfig("No request is left of the trace.", "Use more seconds of it.")
    return scaled(trace, rate)


def scenario(
    num_replicas: int,
    slow: list[int],
    *,
    num_frontends: int,
    report_period_s: float,
    num_blocks: int,
    block_size: int,
    preset: str,
) -> Scenario:
    """Return the cluster. Raises InvalidConfig for what cannot be."""
    for what, value in (("replicas", num_replicas), ("frontends", num_frontends)):
        if value < 1:
            raise InvalidConfig(f"There are {value} {what}.", "Use 1 or more.")
    for number in slow:
        if not 0 <= number < num_replicas:
            raise InvalidConfig(
                f"There is no replica {number}.", f"They are numbered 0 to {num_replicas - 1}."
            )
    if preset not in tuple(Preset):
        raise InvalidConfig(f"preset is '{preset}'.", f"Use one of {', '.join(Preset)}.")
    model = ReplicaModel(num_blocks=num_blocks, block_size=block_size, preset=Preset(preset))
    halved = replace(model, speed=model.speed / 2)
    return Scenario(
        replicas=[halved if i in slow else model for i in range(num_replicas)],
        num_frontends=num_frontends,
        report_period_s=report_period_s,
    )


def _table(summaries: dict[str, Summary]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("policy", no_wrap=True)
    for heading in ("goodput", "TTFT p50", "p90", "p99", "TPOT p50", "p99", "cached", "failed"):
        table.add_column(heading, justify="right")
    for name, summary in summaries.items():
        ttft, tpot = summary.ttft_s, summary.tpot_s
        table.add_row(
            name,
            f"{summary.goodput:.1%}",
            *(f"{seconds:.2f} s" for seconds in (ttft.p50, ttft.p90, ttft.p99)),
            *(f"{1e3 * seconds:.0f} ms" for seconds in (tpot.p50, tpot.p99)),
            f"{summary.cached:.1%}",
            str(summary.num_failed),
        )
    return table
