"""Executors of the experiment: one ends answers where the trace does and meters memory; one is a
model in name only."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.batch import Batch, SampledToken, ScheduledRequest
from engine.block_pool import BlockPool
from engine.executor import Computed, Executor
from engine.request import Request, RequestStatus
from tests.fakes import FakeClock

# Stands for the end of a sequence; nothing else may be this token.
END_TOKEN = 0
_ANY_TOKEN = 1000


@dataclass(slots=True)
class MemoryMeter:
    """Averages over time what a pool has handed out and what of it holds a token."""

    seconds: float = 0.0
    waste_seconds: float = 0.0
    num_running_seconds: float = 0.0
    used_seconds: float = 0.0

    def add(self, num_allocated: int, num_used: int, num_running: int, seconds: float) -> None:
        """Take in one step."""
        self.seconds += seconds
        self.waste_seconds += seconds * (num_allocated - num_used) / num_allocated
        self.num_running_seconds += seconds * num_running
        self.used_seconds += seconds * num_used

    @property
    def waste(self) -> float:
        """Share of the allocated slots that held nothing."""
        return self.waste_seconds / self.seconds

    @property
    def num_running(self) -> float:
        """Sequences that held memory and had not ended."""
        return self.num_running_seconds / self.seconds

    @property
    def num_used(self) -> float:
        """Slots that held a token."""
        return self.used_seconds / self.seconds


class TracedExecutor:
    """Runs another executor, whose tokens it keeps until an answer is as long as in the trace."""

    def __init__(self, inner: Executor, clock: Callable[[], float]) -> None:
        self.meter = MemoryMeter()
        self.pool: BlockPool | None = None
        """The pool to meter, once there is one."""
        self.output_tokens: dict[str, int] = {}
        """How long the answer to each request gets."""
        self._inner = inner
        self._clock = clock
        self._running: set[Request] = set()

    @property
    def num_blocks(self) -> int:
        """KV blocks."""
        return self._inner.num_blocks

    @property
    def num_host_blocks(self) -> int:
        """Blocks of the host tier."""
        return self._inner.num_host_blocks

    def submit(self, batch: Batch) -> Computed:
        """Compute the batch at once."""
        return Computed(self.execute(batch))

    def execute(self, batch: Batch) -> list[SampledToken | None]:
        """Compute the batch, note the memory it took, and end who has come to the end."""
        started = self._clock()
        tokens = self._inner.submit(batch).tokens()
        self._note_memory(batch, self._clock() - started)
        return [self._end(*pair) for pair in zip(batch.requests, tokens, strict=True)]

    def shutdown(self) -> None:
        """Release the inner executor."""
        self._inner.shutdown()

    def _note_memory(self, batch: Batch, seconds: float) -> None:
        pool = self.pool
        assert pool is not None
        self._running.update(scheduled.request for scheduled in batch.requests)
        self._running = {r for r in self._running if r.status is RequestStatus.RUNNING}
        num_allocated = (pool.num_blocks - pool.num_usable_blocks) * pool.block_size
        num_used = sum(r.num_computed_tokens for r in self._running) + batch.num_tokens
        self.meter.add(num_allocated, num_used, len(self._running), seconds)

    def _end(
        self, scheduled: ScheduledRequest, sampled: SampledToken | None
    ) -> SampledToken | None:
        if sampled is None:
            return None
        request = scheduled.request
        if request.num_output_tokens + 1 == self.output_tokens[request.request_id]:
            return SampledToken(END_TOKEN)
        return SampledToken(_ANY_TOKEN) if sampled.token_id == END_TOKEN else sampled


class SimulatedExecutor:
    """Computes nothing and lets the time pass that a 7B model takes on a large GPU, roughly."""

    def __init__(self, num_blocks: int, clock: FakeClock) -> None:
        self._num_blocks = num_blocks
        self._clock = clock

    @property
    def num_blocks(self) -> int:
        """KV blocks."""
        return self._num_blocks

    @property
    def num_host_blocks(self) -> int:
        """There is no host tier."""
        return 0

    def submit(self, batch: Batch) -> Computed:
        """Compute the batch at once."""
        return Computed(self.execute(batch))

    def execute(self, batch: Batch) -> list[SampledToken | None]:
        """Read the weights once, then compute token by token."""
        self._clock.advance(7e-3 + 1e-4 * batch.num_tokens)
        tokens: list[SampledToken | None] = [None] * len(batch.requests)
        for i in batch.wanting:
            tokens[i] = SampledToken(_ANY_TOKEN)
        return tokens

    def shutdown(self) -> None:
        """Nothing to release."""
