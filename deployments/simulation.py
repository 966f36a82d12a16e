"""Runs the simulator as the command line asks: a trace, by one policy or by all, and prints."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cluster.policies import POLICIES
from cluster.simulation.replica import ReplicaModel
from cluster.simulation.reports import Reporting
from cluster.simulation.run import Scenario, simulate_scaling
from cluster.simulation.scaler import Scaling
from cluster.simulation.shaping import multiplied, scaled, window, with_burst, with_flood
from cluster.simulation.summary import (
    Objective,
    Summary,
    as_json,
    combined,
    half_interval,
    summarise,
)
from cluster.simulation.trace import TraceRequest, read_trace
from deployments.cli_settings import parse_replicas
from deployments.cli_simulate import SimulateOptions
from engine.config import Preset
from engine.errors import InvalidConfig

ALL_POLICIES = "all"
MAX_WIDTH = 1000
HEADINGS = (
    *("goodput", "TTFT p50", "p90", "p99", "TPOT p50", "p99", "cached", "failed"),
    *("replica-s", "turns"),
)


def run_simulation(options: SimulateOptions) -> None:
    """Run and print. Raises InvalidConfig for what cannot be."""
    names = _policies(options.policy)
    cluster = scenario(options)
    whole = read_trace(options.trace)
    traces = [shaped(whole, options, seed) for seed in range(options.seeds)]
    objective = Objective(options.ttft_s, options.tpot_s)
    runs: dict[str, list[Summary]] = {name: [] for name in names}
    with Progress(console=Console(stderr=True), transient=True) as bars:
        for name in names:
            bar = bars.add_task(name, total=sum(map(len, traces)))
            for seed, trace in enumerate(traces):
                outcomes, record = simulate_scaling(
                    trace,
                    replace(cluster, seed=seed),
                    POLICIES[name],
                    lambda _num_ended, bar=bar: bars.advance(bar),  # type: ignore[misc]
                )
                runs[name].append(summarise(outcomes, objective, record))
    if options.as_json:
        typer.echo(json.dumps(as_json(runs), indent=2))
    else:
        # Wider than many terminals: a line that they break is whole, a cell that is cut is not.
        table = _table(runs)
        needed = Console(width=MAX_WIDTH).measure(table).maximum
        Console(width=max(Console().width, needed)).print(table)


def shaped(
    trace: Sequence[TraceRequest], options: SimulateOptions, seed: int
) -> list[TraceRequest]:
    """Return the trace of one run. Raises InvalidConfig where nothing is left."""
    _check_above_zero("rate", options.rate)
    seconds = trace[-1].arrival_s + 1.0 if options.seconds is None else options.seconds
    requests = multiplied(window(trace, seconds, seed), options.copies, seconds)
    requests = scaled(requests, options.rate)
    if options.burst is not None:
        start_s, length_s, factor = _numbers(options.burst, "burst", "START:SECONDS:FACTOR", 3)
        _check_above_zero("factor of the burst", factor)
        requests = with_burst(requests, start_s, length_s, factor)
    if options.flood:
        _check_share("flood", options.flood)
        requests = with_flood(requests, options.flood)
    return requests


def scenario(options: SimulateOptions) -> Scenario:
    """Return the cluster; with two numbers of replicas it is scaled between them.

    Raises InvalidConfig for what cannot be.
    """
    num_min, num_max = parse_replicas(options.replicas)
    slow = options.slow or []
    num_replicas = max(1, num_min)
    if num_max < num_replicas:
        raise InvalidConfig(
            f"There are {num_min} to {num_max} replicas.",
            "Give 1 or more, or the smaller number first: --replicas MIN:MAX.",
        )
    counts = (
        ("frontends", options.frontends),
        ("seeds", options.seeds),
        ("copies", options.copies),
    )
    for what, value in counts:
        if value < 1:
            raise InvalidConfig(f"There are {value} {what}.", "Use 1 or more.")
    deaths = [_numbers(text, "death", "S:NUMBER", 2) for text in options.deaths or []]
    for number in [*slow, *(int(number) for _, number in deaths)]:
        if not 0 <= number < num_replicas:
            raise InvalidConfig(
                f"There is no replica {number}.", f"They are numbered 0 to {num_replicas - 1}."
            )
    if options.preset not in tuple(Preset):
        raise InvalidConfig(f"preset is '{options.preset}'.", f"Use one of {', '.join(Preset)}.")
    _check_share("lost-reports", options.lost_reports)
    _check_share("late-reports", options.late_reports)
    model = ReplicaModel(
        num_blocks=options.num_blocks,
        block_size=options.block_size,
        preset=Preset(options.preset),
    )
    scaling = None
    if num_min < num_max:
        _check_above_zero("cold start", options.cold_start_s)
        scaling = Scaling(
            min_replicas=num_min,
            max_replicas=num_max,
            model=model,
            cold_start_s=options.cold_start_s,
            ttft_objective_s=options.ttft_s,
        )
    halved = replace(model, speed=model.speed / 2)
    return Scenario(
        replicas=[halved if i in slow else model for i in range(num_replicas)],
        num_frontends=options.frontends,
        reporting=Reporting(
            period_s=options.report_period_s,
            lost=options.lost_reports,
            late=options.late_reports,
        ),
        deaths=[(time_s, int(number)) for time_s, number in deaths],
        scaling=scaling,
    )


def _policies(asked: str) -> list[str]:
    if asked == ALL_POLICIES:
        return list(POLICIES)
    if asked not in POLICIES:
        known = ", ".join([*POLICIES, ALL_POLICIES])
        raise InvalidConfig(f"There is no policy '{asked}'.", f"Use one of {known}.")
    return [asked]


def _numbers(text: str, name: str, form: str, count: int) -> list[float]:
    parts = text.split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != count or any(number < 0 for number in numbers):
        raise InvalidConfig(f"{name} is '{text}'.", f"Write it as {form}, none below 0.")
    return numbers


def _check_above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise InvalidConfig(f"The {name} is {value:g}.", "Use a value above 0.")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InvalidConfig(f"{name} is {value:g}.", "Use a share from 0 to below 1.")


def _table(runs: Mapping[str, Sequence[Summary]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("policy", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, summaries in runs.items():
        summary = summaries[0] if len(summaries) == 1 else combined(summaries)
        ttft, tpot = summary.ttft_s, summary.tpot_s
        goodput = f"{summary.goodput:.1%}"
        if len(summaries) > 1:
            goodput += f" ± {100 * half_interval([run.goodput for run in summaries]):.1f}"
        table.add_row(
            name,
            goodput,
            *(f"{seconds:.2f} s" for seconds in (ttft.p50, ttft.p90, ttft.p99)),
            *(f"{1e3 * seconds:.0f} ms" for seconds in (tpot.p50, tpot.p99)),
            f"{summary.cached:.1%}",
            str(summary.num_failed),
            f"{summary.replica_s:.0f}",
            str(summary.num_direction_changes),
        )
    return table
