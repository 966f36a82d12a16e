"""Whether a request has room to run, now and until its end."""

from collections.abc import Sequence

from engine.block_pool import BlockPool
from engine.block_tables import BlockTables
from engine.kv_forecast import KvForecast
from engine.output_length import OutputLengths
from engine.request import Request

# Share of the pool that admission leaves alone, so that those running can grow a while.
_WATERMARK = 0.01


class Room:
    """Decides on admission by the blocks at hand and by what everybody is expected to need."""

    def __init__(self, tables: BlockTables, pool: BlockPool, lengths: OutputLengths) -> None:
        self._tables = tables
        self._pool = pool
        self._forecast = KvForecast(lengths, pool.block_size)
        self._watermark = max(1, int(pool.num_blocks * _WATERMARK))

    def take(self, request: Request, running: Sequence[Request]) -> bool:
        """Give a request its cached prefix if the rest fits as well; else leave it as it was.

        All tokens it has by now must fit. Room for the first chunk alone would not do: the
        request would soon stand still with its blocks held, or lose them.
        """
        tables, pool = self._tables, self._pool
        tables.take_prefix(request)
        num_usable = pool.num_usable_blocks - (self._watermark if running else 0)
        if tables.num_lacking(request, request.num_tokens) <= num_usable and (
            not running or self._forecast.fits([*running, request], num_usable)
        ):
            return True
        tables.release(request)
        return False

    def is_possible(self, request: Request, victims: Sequence[Request]) -> bool:
        """Whether it would help to preempt all of `victims`."""
        num_won = sum(map(self._tables.num_own_blocks, victims))
        num_lacking = self._tables.num_lacking(request, request.num_tokens)
        return num_lacking <= self._pool.num_usable_blocks + num_won
