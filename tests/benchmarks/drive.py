"""A core of one of the compared systems, and loads for it, in the caller's thread."""

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.executor import Executor
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.benchmarks.allocation import System, install
from tests.benchmarks.conversation import Conversation
from tests.benchmarks.traced_executor import END_TOKEN, MemoryMeter, TracedExecutor


@dataclass(slots=True)
class Timing:
    """One request: seconds from when it came, not from when the engine had time for it."""

    ttft_s: float = 0.0
    e2e_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one load."""

    timings: list[Timing]
    num_output_tokens: int
    wall_s: float
    memory: MemoryMeter
    num_preemptions: int

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second, from the first request to the last token."""
        return self.num_output_tokens / self.wall_s


class Server:
    """One system. It stays from load to load and keeps what it has learned, as a server does."""

    def __init__(
        self,
        system: System,
        config: EngineConfig,
        executor: Executor,
        *,
        context: int,
        vocab_size: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._vocab_size = vocab_size
        self._executor = TracedExecutor(executor, clock)
        self._core = EngineCore(
            config,
            self._executor,
            max_model_len=context,
            eos_token_ids=frozenset({END_TOKEN}),
            vocab_size=vocab_size,
            clock=clock,
        )
        install(system, self._core, config, context)
        self._executor.pool = self._core._pool

    def run_closed(self, asks: Sequence[Conversation], concurrency: int, seed: int = 0) -> Run:
        """Keep `concurrency` requests in flight until all are done."""
        now = self._clock()
        return self._run(asks, [now] * len(asks), seed, concurrency)

    def run_open(self, asks: Sequence[Conversation], rate: float, seed: int = 0) -> Run:
        """Send requests at `rate` a second, at random (Poisson), whatever the server does."""
        draw = random.Random(seed)
        at = self._clock()
        arrivals = [at := at + draw.expovariate(rate) for _ in asks]
        return self._run(asks, arrivals, seed, len(asks))

    def _run(
        self, asks: Sequence[Conversation], arrivals: list[float], seed: int, concurrency: int
    ) -> Run:
        core, clock = self._core, self._clock
        memory = self._executor.meter = MemoryMeter()
        num_preemptions = core.snapshot().num_preemptions
        draw = random.Random(seed)
        prompts = [ask.prompt(draw, self._vocab_size) for ask in asks]
        self._executor.output_tokens = {str(i): ask.output_tokens for i, ask in enumerate(asks)}
        came = dict[str, float]()
        timings = [Timing() for _ in asks]
        queue = deque(range(len(asks)))
        num_ended = 0
        started = clock()
        while num_ended < len(asks):
            while queue and len(came) - num_ended < concurrency and arrivals[queue[0]] <= clock():
                i = queue.popleft()
                # In a closed loop a client sends when its last request has ended: now.
                came[str(i)] = arrivals[i] if concurrency == len(asks) else clock()
                params = SamplingParams(temperature=0, max_tokens=asks[i].max_tokens)
                core.add(
                    GenerateRequest(request_id=str(i), prompt_token_ids=prompts[i], params=params)
                )
            if not core.has_work:
                time.sleep(max(0.0, arrivals[queue[0]] - clock()))
                continue
            outputs = core.step().outputs
            now = clock()
            for output in outputs:
                timing = timings[int(output.request_id)]
                if output.index == 0:
                    timing.ttft_s = now - came[output.request_id]
                if output.finish_reason is not None:
                    assert output.index + 1 == self._executor.output_tokens[output.request_id]
                    timing.e2e_s = now - came[output.request_id]
                    num_ended += 1
        return Run(
            timings,
            sum(ask.output_tokens for ask in asks),
            clock() - started,
            memory,
            core.snapshot().num_preemptions - num_preemptions,
        )
