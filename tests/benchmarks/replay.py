"""Replays a trace against a live cluster, and simulates the same with steps as its engines took.

    python -m tests.benchmarks.replay TRACE [--replicas 3] [--policies kv round_robin ...]

Each policy gets a service of its own: real engines, each on one thread, and real HTTP. Lengths are
those of the trace over `--shrink`.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.policies import POLICIES
from cluster.simulation.frontend import Outcome
from cluster.simulation.replica import ReplicaModel
from cluster.simulation.run import Scenario, simulate
from cluster.simulation.shaping import FLOOD_TENANT, scaled, shrunk, window, with_flood
from cluster.simulation.summary import Objective, Summary, summarise
from cluster.simulation.trace import TraceRequest, read_trace
from tests.benchmarks.load import Timing, complete
from tests.benchmarks.workload import Ask
from tests.integration.serving import Serving

MODEL = "smollm2"
BLOCK_SIZE = 16
KV_MEMORY_MIB = 96
FIRST_ID, NUM_IDS = 1000, 40_000
"""Token ids that are text of some kind."""
WARM_UP_REQUESTS = 24


@dataclass(frozen=True, slots=True)
class Replay:
    """One run: what clients saw, and how the engines were at its end."""

    outcomes: list[Outcome]
    num_failed: int
    replicas: list[dict[str, Any]]


def prompt(request: TraceRequest) -> list[int]:
    """Token ids that a model knows; alike as far as the trace says."""
    return [FIRST_ID + token_id % NUM_IDS for token_id in request.prompt()]


async def replay(port: int, trace: Sequence[TraceRequest]) -> list[tuple[TraceRequest, Any]]:
    """Send every request at its time; return each with its timing, or with its error."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()

    async def one(request: TraceRequest) -> Timing:
        await asyncio.sleep(max(0.0, start_s + request.arrival_s - loop.time()))
        ask = Ask(prompt(request), request.num_output_tokens)
        headers = {"authorization": f"Bearer {request.tenant}"} if request.tenant else {}
        return await complete("127.0.0.1", port, MODEL, ask, headers=headers)

    results = await asyncio.gather(*map(one, trace), return_exceptions=True)
    return list(zip(trace, results, strict=True))


def run_live(trace: Sequence[TraceRequest], num_replicas: int, options: Sequence[str]) -> Replay:
    """Serve, warm up, replay, stop."""
    with tempfile.TemporaryDirectory() as folder:
        serving = Serving(
            MODEL,
            *("--replicas", str(num_replicas), "--num-threads", "1"),
            *("--kv-cache-memory", f"{KV_MEMORY_MIB}MiB", "--block-size", str(BLOCK_SIZE)),
            *options,
            log=Path(folder) / "log",
        )
        try:
            serving.wait_ready()
            serving.wait_replicas(num_replicas)
            asyncio.run(replay(serving.port, warm_up(trace)))
            results = asyncio.run(replay(serving.port, trace))
            replicas = serving.replicas()
        finally:
            serving.stop()
    outcomes = []
    for request, timing in results:
        outcome = Outcome(request, num_placements=1)
        if isinstance(timing, Timing):
            outcome.first_s = request.arrival_s + timing.ttft_s
            outcome.last_s = request.arrival_s + timing.e2e_s
        outcomes.append(outcome)
    return Replay(outcomes, sum(outcome.has_failed for outcome in outcomes), replicas)


def warm_up(trace: Sequence[TraceRequest]) -> list[TraceRequest]:
    """Requests of the same lengths that share nothing with those to come: engines learn from them
    how long their steps take."""
    chosen = [request for request in trace if not request.tenant][:WARM_UP_REQUESTS]
    return [
        TraceRequest(
            number=len(trace) + i,
            arrival_s=i / 4,
            num_input_tokens=request.num_input_tokens,
            num_output_tokens=request.num_output_tokens,
            tenant=request.tenant,
        )
        for i, request in enumerate(chosen or trace[:WARM_UP_REQUESTS])
    ]


def model_of(replicas: Sequence[dict[str, Any]]) -> ReplicaModel:
    """The mean of what the engines learned of their steps."""
    fits = [replica["step_time_s"] for replica in replicas]
    columns = zip(*fits, strict=True)
    constant_s, seq_s, prefill_token_s = (sum(column) / len(fits) for column in columns)
    return ReplicaModel(
        num_blocks=int(replicas[0]["num_blocks"]),
        block_size=int(replicas[0]["block_size"]),
        max_num_seqs=int(replicas[0]["max_num_seqs"]),
        max_num_batched_tokens=512,
        constant_s=constant_s,
        seq_s=seq_s,
        kv_token_s=0.0,  # the fit has the usual context in what a sequence takes
        prefill_token_s=prefill_token_s,
    )


def compared(live: Summary, simulated: Summary) -> dict[str, Any]:
    """Both, and what the simulator is off by."""
    return {
        "live": asdict(live),
        "simulated": asdict(simulated),
        "error": {
            "goodput": simulated.goodput - live.goodput,
            "ttft_p50": simulated.ttft_s.p50 / live.ttft_s.p50 - 1,
            "ttft_p90": simulated.ttft_s.p90 / live.ttft_s.p90 - 1,
            "tpot_p50": simulated.tpot_s.p50 / live.tpot_s.p50 - 1,
        },
    }


def main() -> None:
    """Print a line for each policy as it comes, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--policies", nargs="*", choices=list(POLICIES), default=["kv"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the trace, before --rate")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--shrink", type=int, default=16)
    parser.add_argument("--ttft", type=float, default=1.0)
    parser.add_argument("--tpot", type=float, default=0.1)
    parser.add_argument("--flood", type=float, default=0.0, help="share of one more tenant")
    options = parser.parse_args()
    trace = scaled(window(read_trace(options.trace), options.seconds, 0), options.rate)
    trace = shrunk(trace, options.shrink)
    extra: list[str] = []
    if options.flood:
        trace = with_flood([named(request) for request in trace], options.flood)
        extra = ["--api-key", "small", "--api-key", FLOOD_TENANT]
    objective = Objective(options.ttft, options.tpot)
    report: dict[str, Any] = {"num_requests": len(trace)}
    for policy in options.policies:
        run = run_live(trace, options.replicas, ["--router-policy", policy, *extra])
        model = model_of(run.replicas)
        scenario = Scenario(replicas=[model] * options.replicas)
        simulated = summarise(simulate(trace, scenario, POLICIES[policy]), objective)
        report[policy] = compared(summarise(run.outcomes, objective), simulated)
        report[policy]["model"] = asdict(model)
        print(f"{policy}: {json.dumps(report[policy])}", file=sys.stderr, flush=True)
    print(json.dumps(report, indent=2))


def named(request: TraceRequest) -> TraceRequest:
    """The same, from the tenant that is to be protected."""
    return TraceRequest(
        number=request.number,
        arrival_s=request.arrival_s,
        num_input_tokens=request.num_input_tokens,
        num_output_tokens=request.num_output_tokens,
        tenant="small",
    )


if __name__ == "__main__":
    main()
