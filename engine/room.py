"""Whether a request has room to run, now and until its end, and who would have to make it."""

from collections.abc import Collection, Sequence

from engine.block_pool import BlockPool
from engine.block_tables import BlockTables
from engine.kv_forecast import KvForecast
from engine.output_length import OutputLengths
from engine.preemption import Preemption
from engine.request import Request

# Share of the pool that admission leaves alone, so that those running can grow a while.
_WATERMARK = 0.01


class Room:
    """Decides on admission by the blocks at hand and by what everybody is expected to need.

    Only looks: neither pool nor requests change. What it finds out about those that run serves
    all candidates until `look` is called again.
    """

    def __init__(
        self,
        tables: BlockTables,
        pool: BlockPool,
        lengths: OutputLengths,
        preemption: Preemption,
    ) -> None:
        self._tables = tables
        self._pool = pool
        self._lengths = lengths
        self._preemption = preemption
        self._watermark = max(1, int(pool.num_blocks * _WATERMARK))
        self._running: list[Request] = []
        self._forecast: KvForecast | None = None
        self._lowest_class = 0
        self._lower: dict[int, list[Request]] = {}

    def look(self, running: list[Request]) -> None:
        """Take note of those that run, whenever they or their blocks have changed."""
        self._running = running
        self._forecast = None
        self._lowest_class = max((request.priority for request in running), default=0)
        self._lower.clear()

    def has_lower(self, request: Request) -> bool:
        """Whether anybody of a lower class runs."""
        return bool(self._running) and self._lowest_class > request.priority

    def is_there(self, request: Request, prefix: Sequence[int]) -> bool:
        """Whether all tokens the request has by now fit, and its growth as it is expected.

        Room for the first chunk alone would not do: the request would soon stand still with its
        blocks held, or lose them.

        Args:
            request: one that waits.
            prefix: blocks it would share or revive.
        """
        if self._num_new_blocks(request, prefix) > self._pool.num_usable_blocks:
            return False
        if self._running and self._forecast is None:
            self._forecast = self._forecast_of(self._running, num_won=0)
        return self._fits(request, prefix, self._forecast)

    def victims(self, request: Request, prefix: Sequence[int]) -> list[Request]:
        """Return the fewest of lower classes, least loss first, without which it can run.

        Empty where it could not run without all of them either.
        """
        if not self.has_lower(request):
            return []
        lower = self._lower.get(request.priority)
        if lower is None:
            lower = self._preemption.lower_classes(request, self._running)
            self._lower[request.priority] = lower
        if not lower or not self._is_there_without(lower, request, prefix):
            return []
        too_few, enough = 0, len(lower)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self._is_there_without(lower[:middle], request, prefix):
                enough = middle
            else:
                too_few = middle
        return lower[:enough]

    def _is_there_without(
        self, victims: Sequence[Request], request: Request, prefix: Sequence[int]
    ) -> bool:
        won = self._tables.held_only_by(victims)
        if self._num_new_blocks(request, prefix) > self._pool.num_usable_blocks + len(won):
            return False
        gone = set(victims)
        left = [other for other in self._running if other not in gone]
        forecast = self._forecast_of(left, len(won)) if left else None
        return self._fits(request, prefix, forecast, won)

    def _fits(
        self,
        request: Request,
        prefix: Sequence[int],
        forecast: KvForecast | None,
        won: Collection[int] = (),
    ) -> bool:
        """`forecast`: of those that would run beside it. `won`: blocks they would not hold."""
        ref_count = self._pool.ref_count
        num_revived = sum(not ref_count(block_id) or block_id in won for block_id in prefix)
        num_usable = self._pool.num_usable_blocks + len(won)
        if forecast is not None:
            num_usable -= self._watermark
        num_new = self._num_new_blocks(request, prefix)
        if num_new > num_usable - num_revived:
            return False
        return forecast is None or forecast.fits(request, num_new + num_revived)

    def _num_new_blocks(self, request: Request, prefix: Sequence[int]) -> int:
        return -(-request.num_tokens // self._pool.block_size) - len(prefix)

    def _forecast_of(self, running: Sequence[Request], num_won: int) -> KvForecast:
        num_usable = self._pool.num_usable_blocks + num_won - self._watermark
        return KvForecast(running, self._lengths, self._pool.block_size, num_usable)
