"""Replays a trace against a live cluster, and simulates the same with steps as its engines took.

    python -m tests.benchmarks.replay TRACE [--replicas 3] [--policies kv round_robin ...]

Each policy gets a service of its own: real engines, each on one thread, and real HTTP. Lengths are
those of the trace over `--shrink`. Engines that share their cores are all slow when one is busy, so
that placement counts for little; with `--paced` steps only take time, as on machines of their own.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from cluster.policies import POLICIES
from cluster.simulation.frontend import Outcome
from cluster.simulation.replica import ReplicaModel
from cluster.simulation.run import Scenario, simulate
from cluster.simulation.shaping import FLOOD_TENANT, scaled, shrunk, window, with_flood
from cluster.simulation.summary import Objective, Summary, summarise
from cluster.simulation.trace import TraceRequest, read_trace
from tests.benchmarks.load import Timing, complete
from tests.benchmarks.paced.engine import SHRINK, SHRUNK
from tests.benchmarks.server import HOST, Server
from tests.benchmarks.workload import Ask
from tests.integration.serving import Serving, wait_until

MODEL = "smollm2"
PACE = "shrunk"
BLOCK_SIZE = 16
KV_MEMORY_MIB = 96
FIRST_ID, NUM_IDS = 1000, 40_000
"""Token ids that are text of some kind."""
WARM_UP_REQUESTS = 24

Headers = dict[str, str]


@dataclass(frozen=True, slots=True)
class Replay:
    """One run: what clients saw, and how the engines were at its end."""

    outcomes: list[Outcome]
    replicas: list[dict[str, Any]]


def prompt(request: TraceRequest) -> list[int]:
    """Token ids that a model knows; alike as far as the trace says."""
    return [FIRST_ID + token_id % NUM_IDS for token_id in request.prompt()]


async def replay(
    port: int, model: str, trace: Sequence[TraceRequest]
) -> list[tuple[TraceRequest, Any]]:
    """Send every request at its time; return each with its timing, or with its error."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()

    async def one(request: TraceRequest) -> Timing:
        await asyncio.sleep(max(0.0, start_s + request.arrival_s - loop.time()))
        ask = Ask(prompt(request), request.num_output_tokens)
        headers = {"authorization": f"Bearer {request.tenant}"} if request.tenant else {}
        return await complete(HOST, port, model, ask, headers=headers)

    results = await asyncio.gather(*map(one, trace), return_exceptions=True)
    return list(zip(trace, results, strict=True))


def run_live(trace: Sequence[TraceRequest], num_replicas: int, options: Sequence[str]) -> Replay:
    """Serve a real model, warm up, replay, stop."""
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
            asyncio.run(replay(serving.port, MODEL, warm_up(trace)))
            results = asyncio.run(replay(serving.port, MODEL, trace))
            return Replay(outcomes_of(results), serving.replicas())
        finally:
            serving.stop()


def run_paced(
    trace: Sequence[TraceRequest], num_replicas: int, options: Sequence[str], headers: Headers
) -> Replay:
    """The same with engines that take time and no CPU, as those of several machines do."""
    command = [sys.executable, "-m", "tests.benchmarks.paced.serve", "{port}", PACE]
    command += ["--replicas", str(num_replicas), *options]
    with (
        Server(command, {}, "/ready") as server,
        httpx2.Client(base_url=f"http://{HOST}:{server.port}", headers=headers) as client,
    ):

        def replicas() -> list[dict[str, Any]]:
            try:
                models = client.get("/status").json()["models"]
            except httpx2.TransportError:  # HAProxy starts anew while deployments come up
                return []
            return [replica for model in models for replica in model["replicas"]]

        wait_until(lambda: len(replicas()) == num_replicas, 60, "replicas")
        asyncio.run(replay(server.port, PACE, warm_up(trace)))
        results = asyncio.run(replay(server.port, PACE, trace))
        return Replay(outcomes_of(results), replicas())


def outcomes_of(results: Sequence[tuple[TraceRequest, Any]]) -> list[Outcome]:
    """What became of requests, as the simulator tells it."""
    outcomes = []
    for request, timing in results:
        outcome = Outcome(request, num_placements=1)
        if isinstance(timing, Timing):
            outcome.first_s = request.arrival_s + timing.ttft_s
            outcome.last_s = request.arrival_s + timing.e2e_s
        outcomes.append(outcome)
    return outcomes


def warm_up(trace: Sequence[TraceRequest]) -> list[TraceRequest]:
    """Requests of the same lengths that share nothing with those to come: engines learn from them
    how long their steps take."""
    first = max(request.number for request in trace) + 1
    return [
        replace(request, number=first + i, arrival_s=i / 4, prefix_ids=())
        for i, request in enumerate(trace[:WARM_UP_REQUESTS])
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
    parser.add_argument("--small", action="store_true", help="from one tenant, with a key")
    parser.add_argument("--flood", type=float, default=0.0, help="share of one more tenant")
    parser.add_argument("--paced", action="store_true", help="engines that take no CPU")
    options = parser.parse_args()
    trace = scaled(window(read_trace(options.trace), options.seconds, 0), options.rate)
    trace = shrunk(trace, SHRINK if options.paced else options.shrink)
    extra: list[str] = []
    headers: Headers = {}
    if options.small or options.flood:
        trace = [replace(request, tenant="small", prefix_ids=()) for request in trace]
        trace = with_flood(trace, options.flood) if options.flood else trace
        extra = ["--api-key", "small", "--api-key", FLOOD_TENANT]
        headers = {"authorization": "Bearer small"}
    objective = Objective(options.ttft, options.tpot)
    report: dict[str, Any] = {"num_requests": len(trace)}
    for policy in options.policies:
        if options.paced:
            run = run_paced(trace, options.replicas, ["--policy", policy, *extra], headers)
        else:
            run = run_live(trace, options.replicas, ["--router-policy", policy, *extra])
        model = SHRUNK if options.paced else model_of(run.replicas)
        scenario = Scenario(replicas=[model] * options.replicas)
        simulated = summarise(simulate(trace, scenario, POLICIES[policy]), objective)
        report[policy] = compared(summarise(run.outcomes, objective), simulated)
        report[policy]["model"] = asdict(model)
        print(f"{policy}: {json.dumps(report[policy])}", file=sys.stderr, flush=True)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
