"""What the endpoint costs over the bare engine: CPU per token, and time to the first one.

    python -m tests.benchmarks.overhead [--seconds 20]

Both run an engine of which every step takes 30 ms and no CPU, for 64 clients that ask again some
time after each answer. The CPU is that of all processes but the client's.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from engine.loop import EngineLoop
from engine.output import StepOutput
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from engine.snapshot import EngineSnapshot
from tests.benchmarks import process_tree
from tests.benchmarks.load import complete
from tests.benchmarks.paced.engine import paced_core
from tests.benchmarks.server import HOST, Server
from tests.benchmarks.workload import Ask

CONCURRENCY = 64
PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64
MAX_THINK_S = 0.2
"""Else all would ask at the end of a step, and those a little late would wait for the next one."""

Client = Callable[[int], Awaitable[float]]
"""Send one request, the n-th; return the seconds to its first token."""


async def ask_for(seconds: float, client: Client) -> list[float]:
    """Let all clients ask for so long; return the times to first tokens but the first ones."""
    deadline = time.perf_counter() + seconds
    numbers = iter(range(1 << 30))
    ttfts: list[float] = []

    async def one(seed: int) -> None:
        rng = random.Random(seed)
        await asyncio.sleep(rng.uniform(0, 2.0))
        while time.perf_counter() < deadline:
            ttfts.append(await client(next(numbers)))
            await asyncio.sleep(rng.uniform(0, MAX_THINK_S))

    await asyncio.gather(*(one(i) for i in range(CONCURRENCY)))
    return ttfts[CONCURRENCY:]


class BareEngine:
    """The engine loop in this process, and who waits for what of it."""

    def __init__(self) -> None:
        self._events = asyncio.get_running_loop()
        self._waiters: dict[str, tuple[asyncio.Future[None], asyncio.Future[None]]] = {}
        self.num_tokens = 0
        self.loop = EngineLoop(paced_core(), on_step=self._on_step, on_failure=print)
        self.loop.start()

    async def complete(self, number: int) -> float:
        """Run one request; return the seconds to its first token."""
        request = GenerateRequest(
            request_id=str(number),
            prompt_token_ids=[number % 40_000] * PROMPT_TOKENS,
            params=SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True, temperature=0),
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
        ttfts = await ask_for(seconds, engine.complete)
        return ttfts, time.process_time() - started_s, engine.num_tokens

    ttfts, cpu_s, num_tokens = asyncio.run(run())
    return report(ttfts, cpu_s, num_tokens)


def measure_endpoint(seconds: float) -> dict[str, float]:
    """Everything: HAProxy, frontend, supervisor, rank."""
    command = [sys.executable, "-m", "tests.benchmarks.paced.serve", "{port}"]
    with Server(command, {}, "/ready") as server:

        async def client(number: int) -> float:
            ask = Ask([number % 40_000] * PROMPT_TOKENS, OUTPUT_TOKENS)
            return (await complete(HOST, server.port, "smollm2", ask)).ttft_s

        asyncio.run(ask_for(3.0, client))
        idle_s = process_tree.cpu_seconds(server.pid)
        time.sleep(5.0)
        idle_rate = (process_tree.cpu_seconds(server.pid) - idle_s) / 5.0
        before_s, started = process_tree.cpu_seconds(server.pid), time.perf_counter()
        ttfts = asyncio.run(ask_for(seconds, client))
        cpu_s = process_tree.cpu_seconds(server.pid) - before_s
        elapsed_s = time.perf_counter() - started
        num_tokens = (len(ttfts) + CONCURRENCY) * OUTPUT_TOKENS
    found = report(ttfts, cpu_s, num_tokens)
    found["idle_cpu_share"] = idle_rate
    found["cpu_us_per_token_over_idle"] = 1e6 * (cpu_s - idle_rate * elapsed_s) / num_tokens
    return found


def report(ttfts: list[float], cpu_s: float, num_tokens: int) -> dict[str, float]:
    """Return what is printed."""
    return {
        "num_tokens": num_tokens,
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
        "ttft_p50_ms": endpoint["ttft_p50_ms"] - bare["ttft_p50_ms"],
    }
    print(json.dumps({"bare": bare, "endpoint": endpoint, "added": added}, indent=2))


if __name__ == "__main__":
    main()
