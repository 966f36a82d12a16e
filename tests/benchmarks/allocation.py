"""Two older ways to give requests KV memory, behind the engine's own interfaces.

Both run on the product's scheduler, executor and kernels, so that nothing differs but the rules:

    reserved    paged blocks, all that a request may ever need (prompt + max_tokens) taken when it
                is admitted, as TGI does; requests join and leave at every step
    contiguous  one slot of the longest context for each request; a batch is admitted together and
                nobody joins until all of it have ended. The slot of one that has ended stays taken
                until then, as in a tensor with a row for each. Kinder than such servers were:
                prompts are not padded and rows that have ended are not computed
"""

from collections.abc import Callable, Sequence
from enum import StrEnum

from engine.block_pool import BlockPool
from engine.block_tables import BlockTables
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.output import FinishReason
from engine.output_length import OutputLengths
from engine.preemption import Preemption
from engine.request import Request
from engine.room import Room
from engine.scheduler import Scheduler
from engine.step_plan import StepPlan
from engine.step_time import StepTimeFit


class System(StrEnum):
    """What is compared; `paged` is the product."""

    PAGED = "paged"
    RESERVED = "reserved"
    CONTIGUOUS = "contiguous"


class ContiguousPool(BlockPool):
    """Hands out slots: runs of neighbouring blocks, all of the same length."""

    def __init__(self, num_blocks: int, block_size: int, num_slot_blocks: int) -> None:
        super().__init__(num_blocks, block_size, enable_prefix_caching=False)
        self.num_slots = num_blocks // num_slot_blocks
        self._num_slot_blocks = num_slot_blocks

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take a slot; who has one already may ask for nothing more."""
        if num_blocks <= 0:
            return []
        assert num_blocks == self._num_slot_blocks
        # Free blocks are a stack, and only whole slots come off it and go back.
        block_ids = super().allocate(num_blocks)
        assert block_ids is None or block_ids == [*range(block_ids[0], block_ids[-1] + 1)]
        return block_ids


class ReservingRoom(Room):
    """Whether there are blocks for all that a request may ever need."""

    def __init__(
        self,
        tables: BlockTables,
        pool: BlockPool,
        preemption: Preemption,
        reserve: Callable[[Request], int],
    ) -> None:
        super().__init__(tables, pool, OutputLengths(), preemption)
        self._reserve = reserve

    def is_there(self, request: Request, prefix: Sequence[int]) -> bool:
        """Whether as many tokens as `reserve` says fit."""
        num_lacking = self._tables.num_lacking(request, self._reserve(request))
        return num_lacking <= self._pool.num_usable_blocks

    def victims(self, request: Request, prefix: Sequence[int]) -> list[Request]:
        """Nobody loses what was reserved."""
        return []


class ReservingScheduler(Scheduler):
    """The product's scheduler with memory reserved at admission: it never preempts."""

    def __init__(
        self,
        config: EngineConfig,
        pool: BlockPool,
        step_time: StepTimeFit,
        reserve: Callable[[Request], int],
    ) -> None:
        super().__init__(config, pool, step_time, OutputLengths())
        self._reserve = reserve
        self._room = ReservingRoom(self._tables, pool, self._preemption, reserve)

    def _admit(self, request: Request, overtaken: list[Request], plan: StepPlan) -> bool:
        is_admitted = super()._admit(request, overtaken, plan)
        if is_admitted:
            self._tables.grow(request, self._reserve(request))
        return is_admitted


class BatchScheduler(ReservingScheduler):
    """Admits as many as there are slots, then nobody until all of them have ended."""

    def __init__(
        self, config: EngineConfig, pool: ContiguousPool, step_time: StepTimeFit, context: int
    ) -> None:
        super().__init__(config, pool, step_time, reserve=lambda _: context)
        self._num_slots = pool.num_slots
        self._is_forming = False
        self._held: list[int] = []

    def _schedule_prefills(self, plan: StepPlan) -> None:
        if not self.num_running:
            self._form_batch(plan)
        super()._schedule_prefills(plan)

    def _form_batch(self, plan: StepPlan) -> None:
        self._is_forming = True
        for request in self._waiting.candidates([], self._num_slots):
            self._admit(request, [], plan)
        self._is_forming = False
        # The batch holds its slots beside its requests, and longer than some of them.
        self._held = [block_id for r in self._running.prefilling for block_id in r.block_ids]
        self._pool.share(self._held)

    def _admit(self, request: Request, overtaken: list[Request], plan: StepPlan) -> bool:
        return self._is_forming and super()._admit(request, overtaken, plan)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        super()._finish(request, reason)
        if not self.num_running:
            self._pool.free(self._held)
            self._held = []


def install(system: System, core: EngineCore, config: EngineConfig, context: int) -> None:
    """Make a core that has not run yet allocate and schedule as `system` does."""
    assert not config.enable_prefix_caching, "only the product has it, and it is not compared"
    if system is System.RESERVED:
        core._scheduler = ReservingScheduler(
            config, core._pool, core._step_time, lambda r: r.num_prompt_tokens + r.max_tokens
        )
    elif system is System.CONTIGUOUS:
        num_slot_blocks = -(-context // config.block_size)
        pool = ContiguousPool(core._pool.num_blocks, config.block_size, num_slot_blocks)
        core._pool = pool
        core._scheduler = BatchScheduler(config, pool, core._step_time, context)
