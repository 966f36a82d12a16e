"""The step being put together: what is in it, and what is left of its budget."""

from engine.batch import Batch, ScheduledRequest
from engine.block_pool import BlockPool
from engine.block_tables import BlockTables
from engine.request import Request
from engine.step_time import StepTimeFit, StepWork


class StepPlan:
    """Takes requests until tokens or seconds run out."""

    def __init__(
        self,
        tables: BlockTables,
        pool: BlockPool,
        step_time: StepTimeFit,
        max_tokens: int,
        now: float,
        *,
        is_ahead: bool = False,
    ) -> None:
        """Begin with nothing.

        Args:
            tables: of the requests.
            pool: of their blocks.
            step_time: what tokens cost.
            max_tokens: of the step.
            now: time at which it is made, on the engine's clock.
            is_ahead: tokens of the step before are unknown, so nobody may lose blocks.
        """
        self.now = now
        self.is_ahead = is_ahead
        self.must_wait = False
        """Whether it cannot be made ahead: somebody has to give blocks away first."""
        self.decodes: list[ScheduledRequest] = []
        self.prefill_s_left = 0.0
        self._prefills: list[ScheduledRequest] = []
        self._tables = tables
        self._pool = pool
        self._step_time = step_time
        self._max_tokens = max_tokens
        self._num_prefill_tokens = 0

    @property
    def is_empty(self) -> bool:
        """Whether it would compute nothing."""
        return not self.decodes and not self._prefills

    @property
    def num_tokens_left(self) -> int:
        """Tokens that may still be added."""
        return self._max_tokens - len(self.decodes) - self._num_prefill_tokens

    @property
    def takes_prefill(self) -> bool:
        """Whether there is anything left for prefill."""
        return self.num_tokens_left > 0 and self.prefill_s_left > 0 and not self.must_wait

    def decode_work(self) -> StepWork:
        """Return what its decodes compute."""
        work = StepWork()
        for scheduled in self.decodes:
            work.add_decode(scheduled.request.num_computed_tokens)
        return work

    def add_chunk(self, request: Request) -> None:
        """Add its next tokens, as far as budget and the blocks at hand reach."""
        num_computed = request.num_computed_tokens
        num_reachable = len(request.block_ids) + self._pool.num_usable_blocks
        end = min(request.num_tokens, num_reachable * self._pool.block_size)
        in_time = self._step_time.tokens_within(self.prefill_s_left, num_computed)
        # One token at least, or a prompt whose single token takes too long would never end.
        chunk = int(min(end - num_computed, self.num_tokens_left, max(1.0, in_time)))
        if chunk <= 0:
            return
        self._tables.grow(request, num_computed + chunk)
        self._prefills.append(ScheduledRequest(request, chunk))
        self._num_prefill_tokens += chunk
        self.prefill_s_left -= self._step_time.prefill_s(chunk, num_computed)

    def drop(self, request: Request) -> None:
        """Leave out a request that has lost its blocks."""
        self.decodes = [s for s in self.decodes if s.request is not request]
        self._prefills = [s for s in self._prefills if s.request is not request]

    def batch(self) -> Batch:
        """Return what the step runs."""
        # One-token chunks run like decodes, so they stand next to them.
        self._prefills.sort(key=lambda scheduled: scheduled.num_scheduled_tokens > 1)
        return Batch(self.decodes + self._prefills, self._pool.take_moves())
