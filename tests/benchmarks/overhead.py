"""What the endpoint costs over the bare engine: CPU per token, and time to the first one.

    python -m tests.benchmarks.overhead [--seconds 20]

Both run an engine of which every step takes 30 ms and no CPU, for 64 clients that ask again some
time after each answer; one of them asks for single tokens, which are timed. The CPU is that of all
processes but the clients': Ray's own daemons take some of it with nothing to do, which is told.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor

from engine.loop import EngineLoop
from engine.output import StepOutput
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from engine.snapshot import EngineSnapshot
from tests.benchmarks import process_tree
from tests.benchmarks.load import complete
from tests.benchmarks.paced.engine import STEADY, paced_core
from tests.benchmarks.server import HOST, Server
from tests.benchmarks.workload import Ask

CONCURRENCY = 64
PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64
MAX_THINK_S = 0.2
"""Else all would ask at the end of a step, and those a little late would wait for the next one."""
RAMP_S = 3.0
IDLE_S = 5.0

Client = Callable[[int, int], Awaitable[float]]
"""Send one request, the n-th, for so many tokens; return the seconds to the first of them."""


async def load(seconds: float, client: Client) -> int:
    """Let all clients but one ask for so long; return the requests."""
    deadline = time.perf_counter() + seconds
    numbers = iter(range(1 << 30))

    async def one(seed: int) -> None:
        rng = random.Random(seed)
        await asyncio.sleep(rng.uniform(0, 2.0))
        while time.perf_counter() < deadline:
            await client(next(numbers), OUTPUT_TOKENS)
            await asyncio.sleep(rng.uniform(0, MAX_THINK_S))

    await asyncio.gather(*(one(i) for i in range(CONCURRENCY - 1)))
    return next(numbers)


async def probe(seconds: float, client: Client) -> list[float]:
    """Ask for single tokens beside the load, once it is there; return the times they took."""
    await asyncio.sleep(RAMP_S)
    rng = random.Random(0)
    deadline = time.perf_counter() + seconds - RAMP_S
    ttfts: list[float] = []
    while time.perf_counter() < deadline:
        ttfts.append(await client(1_000_000 + len(ttfts), 1))
        await asyncio.sleep(rng.uniform(0, MAX_THINK_S))
    return ttfts


class BareEngine:
    """The engine loop in this process, and who waits for what of it."""

    def __init__(self) -> None:
        self._events = asyncio.get_running_loop()
        self._waiters: dict[str, tuple[asyncio.Future[None], asyncio.Future[None]]] = {}
        self.num_tokens = 0
        self.loop = EngineLoop(paced_core(STEADY), on_step=self._on_step, on_failure=print)
        self.loop.start()

    async def complete(self, number: int, num_tokens: int) -> float:
        """Run one request; return the seconds to its first token."""
        request = GenerateRequest(
            request_id=str(number),
            prompt_token_ids=[number % 40_000] * PROMPT_TOKENS,
            params=SamplingParams(max_tokens=num_tokens, ignore_eos=True, temperature=0),
        )
        first, last = self._events.create_future(), self._events.create_future()
        self._waiters[request.request_id] = first, last
        started = time.perf_counter()
        self.loop.add(request)
        await first
        ttft_s = time.perf_counter() - started
        await last
        return ttft_s

    def _on_step(self, output: StepOutput, _snapshot: EngineSnapshot) -> None:
        self._events.call_soon_threadsafe(self._tell, output)

    def _tell(self, step: StepOutput) -> None:
        for output in step.outputs:
            self.num_tokens += len(output.token_ids)
            first, last = self._waiters[output.request_id]
            if not first.done():
                first.set_result(None)
            if output.finish_reason is not None:
                last.set_result(None)
                del self._waiters[output.request_id]


def measure_bare(seconds: float) -> dict[str, float]:
    """The engine alone, in this process."""

    async def run() -> tuple[list[float], float, int]:
        engine = BareEngine()
        started_s = time.process_time()
        ttfts, _ = await asyncio.gather(
            probe(seconds, engine.complete), load(seconds, engine.complete)
        )
        return ttfts, time.process_time() - started_s, engine.num_tokens

    ttfts, cpu_s, num_tokens = asyncio.run(run())
    return report(ttfts, cpu_s, num_tokens)


def http_client(port: int) -> Client:
    """Return what asks the endpoint."""

    async def client(number: int, num_tokens: int) -> float:
        ask = Ask([number % 40_000] * PROMPT_TOKENS, num_tokens)
        return (await complete(HOST, port, "steady", ask)).ttft_s

    return client


def run_load(port: int, seconds: float) -> int:
    """Put load on the endpoint, in a process of its own: 64 streams to read take time, which would
    be in what the probe sees."""
    return asyncio.run(load(seconds, http_client(port)))


def measure_endpoint(seconds: float) -> dict[str, float]:
    """Everything: HAProxy, frontend, supervisor, rank."""
    command = [sys.executable, "-m", "tests.benchmarks.paced.serve", "{port}", "steady"]
    with Server(command, {}, "/ready") as server, ProcessPoolExecutor(1) as pool:
        pool.submit(run_load, server.port, RAMP_S).result()
        idle_s = process_tree.cpu_seconds(server.pid)
        time.sleep(IDLE_S)
        idle_share = (process_tree.cpu_seconds(server.pid) - idle_s) / IDLE_S
        before_s, started = process_tree.cpu_seconds(server.pid), time.perf_counter()
        loading = pool.submit(run_load, server.port, seconds)
        ttfts = asyncio.run(probe(seconds, http_client(server.port)))
        num_tokens = loading.result() * OUTPUT_TOKENS + len(ttfts)
        cpu_s = process_tree.cpu_seconds(server.pid) - before_s
        elapsed_s = time.perf_counter() - started
    found = report(ttfts, cpu_s, num_tokens)
    found["idle_cpu_share"] = idle_share
    found["cpu_us_per_token_over_idle"] = 1e6 * (cpu_s - idle_share * elapsed_s) / num_tokens
    return found


def report(ttfts: list[float], cpu_s: float, num_tokens: int) -> dict[str, float]:
    """Return what is printed."""
    return {
        "num_tokens": num_tokens,
        "num_probes": len(ttfts),
        "cpu_us_per_token": 1e6 * cpu_s / num_tokens,
        "ttft_p50_ms": 1e3 * statistics.median(ttfts),
        "ttft_p99_ms": 1e3 * sorted(ttfts)[len(ttfts) * 99 // 100],
    }


def main() -> None:
    """Print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    seconds = parser.parse_args().seconds
    bare = measure_bare(seconds)
    endpoint = measure_endpoint(seconds)
    added = {
        "cpu_us_per_token": endpoint["cpu_us_per_token"] - bare["cpu_us_per_token"],
        "cpu_us_per_token_over_idle": endpoint["cpu_us_per_token_over_idle"]
        - bare["cpu_us_per_token"],
        "ttft_p50_ms": endpoint["ttft_p50_ms"] - bare["ttft_p50_ms"],
    }
    print(json.dumps({"bare": bare, "endpoint": endpoint, "added": added}, indent=2))


if __name__ == "__main__":
    main()
