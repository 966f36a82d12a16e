"""`pageray simulate`: its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from deployments.cli_options import takes_options


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What is simulated and how it is judged, as given."""

    trace: Annotated[Path, typer.Argument(help="Arrivals: JSON lines or CSV, gzipped or not.")]
    replicas: Annotated[
        str,
        typer.Option("--replicas", metavar="N|MIN:MAX", help="How many; MIN:MAX scales them."),
    ] = "12"
    cold_start_s: Annotated[
        float, typer.Option("--cold-start", help="Seconds until a new replica serves.")
    ] = 60.0
    policy: Annotated[
        str, typer.Option("--policy", help="How requests are placed; all: each way in turn.")
    ] = "kv"
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Of the trace.", show_default="all")
    ] = None
    rate: Annotated[float, typer.Option("--rate", help="Arrivals so many times as fast.")] = 1.0
    copies: Annotated[
        int, typer.Option("--copies", help="So many such traces at once, each begun elsewhere.")
    ] = 1
    seeds: Annotated[
        int,
        typer.Option("--seeds", help="Runs of each policy, on other parts of the trace each time."),
    ] = 1
    frontends: Annotated[int, typer.Option("--frontends", help="How many.")] = 1
    report_period_s: Annotated[
        float, typer.Option("--report-period", help="Longest silence of a replica in seconds.")
    ] = 0.0
    lost_reports: Annotated[
        float, typer.Option("--lost-reports", help="Share of them that never arrives.")
    ] = 0.0
    late_reports: Annotated[
        float, typer.Option("--late-reports", help="Share of them that later ones overtake.")
    ] = 0.0
    slow: Annotated[
        list[int] | None, typer.Option("--slow", help="Number of a replica at half speed.")
    ] = None
    deaths: Annotated[
        list[str] | None,
        typer.Option("--death", metavar="S:NUMBER", help="A replica dies after so many seconds."),
    ] = None
    burst: Annotated[
        str | None,
        typer.Option(
            "--burst",
            metavar="START:SECONDS:FACTOR",
            help="From START on, requests come FACTOR times as fast for so many seconds.",
        ),
    ] = None
    flood: Annotated[
        float,
        typer.Option("--flood", help="Share of all requests that one more tenant sends."),
    ] = 0.0
    num_blocks: Annotated[int, typer.Option("--num-blocks", help="Of a replica.")] = 28_800
    block_size: Annotated[int, typer.Option("--block-size", help="Tokens in a block.")] = 16
    preset: Annotated[str, typer.Option("--preset", help="As of `serve`.")] = "balanced"
    ttft_s: Annotated[float, typer.Option("--ttft", help="Good is a first token by then.")] = 5.0
    tpot_s: Annotated[float, typer.Option("--tpot", help="And so long a token at most.")] = 0.08
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False


@takes_options(SimulateOptions)
def simulate(options: SimulateOptions) -> None:
    """Try placement on a trace of arrivals, with simulated replicas, in simulated time."""
    from deployments.simulation import run_simulation  # noqa: PLC0415  only this command needs it

    run_simulation(options)
