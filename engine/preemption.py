"""Chooses who has to give up blocks when there are too few."""

from collections.abc import Iterable

from engine.block_pool import BlockPool
from engine.block_tables import BlockTables
from engine.request import Request
from engine.step_time import StepTimeFit

# A request that lost its blocks so often keeps them, while there is another to take from.
_MAX_PREEMPTIONS = 3


class Preemption:
    """Picks victims by what they would lose."""

    def __init__(self, tables: BlockTables, pool: BlockPool, step_time: StepTimeFit) -> None:
        self._tables = tables
        self._pool = pool
        self._step_time = step_time

    def victim(self, request: Request, running: list[Request]) -> Request | None:
        """Return whom `request` takes a block from: of those that came later, who loses least.

        None: nobody has anything that the others do not hold as well, or all have lost too often
        and `request` is not the first of those that run.
        """
        later = [other for other in running if other.rank > request.rank]
        spared = [other for other in later if other.num_preemptions < _MAX_PREEMPTIONS]
        if not spared:
            if any(other.rank < request.rank for other in running):
                return None
            spared = later
        # Those whose blocks are all shared free nothing, unless it is with each other.
        useful = [other for other in spared if self._tables.num_own_blocks(other)]
        if not useful and self._tables.held_only_by(spared):
            useful = spared
        return min(useful, key=self._loss, default=None)

    def lower_classes(self, request: Request, running: Iterable[Request]) -> list[Request]:
        """Return those of lower classes that `request` may displace, who loses least first."""
        lower = [
            other
            for other in running
            if other.priority > request.priority and other.num_preemptions < _MAX_PREEMPTIONS
        ]
        return sorted(lower, key=self._loss)

    def num_lost_tokens(self, request: Request) -> int:
        """Count the tokens that may have to be computed again.

        Full blocks are found again as long as nobody needs the room, or in the host tier; blocks
        that others hold as well are not lost.
        """
        host = self._pool.host
        num_kept = len(request.block_ids) - self._tables.num_own_blocks(request)
        if host is not None and host.is_worth_it:
            num_kept = request.num_computed_tokens // self._pool.block_size
        return max(0, request.num_computed_tokens - num_kept * self._pool.block_size)

    def _loss(self, request: Request) -> tuple[float, int]:
        num_lost = self.num_lost_tokens(request)
        num_kept = request.num_computed_tokens - num_lost
        loss_s = self._step_time.prefill_s(num_lost, num_kept)
        if self._pool.host is not None:
            loss_s += 2 * self._step_time.move_s * (num_kept // self._pool.block_size)
        # Nothing learned yet: tokens stand for seconds. Of equals, who came last.
        return loss_s or num_lost, -request.arrival
