"""Chooses the requests of the next step and applies what the step brought.

Continuous batching with chunked prefill: a request is tokens known and tokens computed, and a step
closes the gap by as much as budget and blocks allow. Every step has every decode; prefill gets the
rest, in the order of engine/waiting_queue.py. Knows no tensors, clients or clocks.

Why nobody starves, within one priority class and tenant:
- A request may take blocks from those that came after it, never from earlier ones. So the earliest
  that runs always gets on, whatever the others do.
- Its place in the queue is fixed, so only so many can be put before it; and when it stands first
  and does not fit, only so many may pass.
"""

from collections.abc import Sequence
from itertools import chain

from engine.batch import Batch, SampledToken
from engine.block_pool import BlockPool
from engine.block_tables import BlockTables
from engine.config import EngineConfig
from engine.fair_share import OUTPUT_COST, FairShare
from engine.output import FinishReason, TokenOutput
from engine.output_length import OutputLengths
from engine.preemption import Preemption
from engine.request import Request, RequestStatus
from engine.room import Room
from engine.running_requests import RunningRequests
from engine.scheduler_counts import SchedulerCounts
from engine.step_budget import StepBudget
from engine.step_plan import StepPlan
from engine.step_time import StepTimeFit
from engine.waiting_queue import WaitingQueue

# Of a long queue only so many are looked at in a step.
_MAX_CANDIDATES = 64
# A request that finds no room is passed by so many that do; then they wait for it.
_MAX_OVERTAKES = 64


class Scheduler:
    """Owns the waiting and running requests of one engine and the blocks they hold."""

    def __init__(
        self, config: EngineConfig, pool: BlockPool, step_time: StepTimeFit, lengths: OutputLengths
    ) -> None:
        self.counts = SchedulerCounts()
        self._pool = pool
        self._step_time = step_time
        self._tables = BlockTables(pool, config.model_name)
        self._budget = StepBudget(config.preset, step_time)
        self._lengths = lengths
        self._preemption = Preemption(self._tables, pool, step_time)
        self._room = Room(self._tables, pool, lengths, self._preemption)
        self._max_num_batched_tokens = config.max_num_batched_tokens
        # A step always has room for a token of each.
        self._max_num_seqs = min(config.max_num_seqs, config.max_num_batched_tokens)
        self._fair_share = FairShare()
        self._waiting = WaitingQueue(self._fair_share)
        self._running = RunningRequests()
        self._next_arrival = 0

    @property
    def num_waiting(self) -> int:
        """Requests that hold no blocks yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something, or one is on its way."""
        return bool(self._running or self._waiting)

    @property
    def num_queued_prefill_tokens(self) -> int:
        """Known tokens not computed yet, of waiting and prefilling requests."""
        return self._waiting.num_tokens + self._running.num_queued_tokens

    def add(self, request: Request, now: float = 0.0) -> None:
        """Queue a request. The whole of it, `max_tokens` included, must fit the pool."""
        request.arrival = self._next_arrival
        request.arrival_s = now
        self._next_arrival += 1
        self._tables.extend_hashes(request)
        self._fair_share.enter(request.tenant)
        self._enqueue(request)

    def end(self, request: Request, reason: FinishReason) -> None:
        """End a request now, whatever it does, and take its blocks back."""
        if request.status is RequestStatus.WAITING:
            self._waiting.remove(request)
        else:
            self._running.remove(request)
        self._finish(request, reason)

    def schedule(self, now: float = 0.0) -> Batch:
        """Choose what the next step computes and allocate its blocks."""
        plan = self._plan(now, is_ahead=False)
        if plan.is_empty:
            self._free_the_first(plan)
        return plan.batch()

    def schedule_ahead(self, now: float = 0.0) -> Batch | None:
        """Choose it while the tokens of the step before are unknown.

        None: they must be known first, because nothing can go on or somebody must lose blocks.
        Whom a stop token has ended then computes in vain.
        """
        plan = self._plan(now, is_ahead=True)
        return None if plan.must_wait or plan.is_empty else plan.batch()

    def submitted(self, batch: Batch) -> None:
        """Note that a batch is on its way; to be called before anything else is scheduled."""
        self._running.advance(batch)
        self._register_blocks(batch)

    def update(
        self, batch: Batch, sampled_tokens: Sequence[SampledToken | None], now: float = 0.0
    ) -> list[TokenOutput]:
        """Take the tokens of a batch that was submitted: one for each of its `wanting`."""
        outputs = []
        for i in batch.wanting:
            request, sampled = batch.requests[i].request, sampled_tokens[i]
            assert sampled is not None, "the executor owes a token"
            if request.status is not RequestStatus.RUNNING:
                continue  # it ended while the step was on its way
            output = sampled.tell(request, now)
            outputs.append(output)
            if output.finish_reason is not None:
                self._tables.register(request)
                self._running.remove(request)
                self._finish(request, output.finish_reason)
        self._register_blocks(batch)
        self.counts.num_generated_tokens += len(outputs)
        return outputs

    def _register_blocks(self, batch: Batch) -> None:
        block_size = self._pool.block_size
        for scheduled in batch.requests:
            request = scheduled.request
            if request.num_computed_tokens >= (request.num_registered_blocks + 1) * block_size:
                self._tables.register(request)

    def _plan(self, now: float, *, is_ahead: bool) -> StepPlan:
        limit = self._max_num_batched_tokens
        plan = StepPlan(self._tables, self._pool, self._step_time, limit, now, is_ahead=is_ahead)
        if self._pool.host is not None:
            compute_s = self._step_time.prefill_s(self._pool.block_size)
            self._pool.host.set_price(self._step_time.move_s, compute_s)
        self._schedule_decodes(plan)
        if self._running.prefilling or self._waiting:
            self._schedule_prefills(plan)
        return plan

    def _schedule_decodes(self, plan: StepPlan) -> None:
        block_size = self._pool.block_size
        growing = [
            request
            for request in self._running.decoding
            if request.num_computed_tokens == len(request.block_ids) * block_size
        ]
        if len(growing) <= self._pool.num_usable_blocks:
            for request in growing:
                self._tables.grow(request, request.num_tokens)
            plan.decodes = list(self._running.decoding.values())
        elif plan.is_ahead:
            plan.must_wait = True
        else:
            self._schedule_decodes_by_rank(plan)

    def _schedule_decodes_by_rank(self, plan: StepPlan) -> None:
        """Serve them in order of rank, because the later ones may have to give blocks away.

        One that finds no block sits the step out and keeps what it has.
        """
        for request in sorted(self._running.decoding, key=lambda r: r.rank):
            if request.status is not RequestStatus.RUNNING:
                continue  # preempted just now
            if self._tables.num_lacking(request, request.num_tokens):
                if not self._make_room(request):
                    continue
                self._tables.grow(request, request.num_tokens)
            plan.decodes.append(self._running.decoding[request])

    def _schedule_prefills(self, plan: StepPlan) -> None:
        num_prefills = len(self._running.prefilling) + len(self._waiting)
        for request in self._running.prefilling:
            self._set_due(request, request.num_computed_tokens)
        candidates = self._waiting.candidates(self._running.prefilling, _MAX_CANDIDATES)
        first = next(candidates)
        num_ahead = self._fair_share.num_ahead(first.tenant, self._running.decoding)
        plan.prefill_s_left = self._budget.prefill_s(plan.decode_work(), num_prefills, num_ahead)
        if self._waiting:
            self._room.look(list(self._running))
        overtaken: list[Request] = []
        for request in chain([first], candidates):
            if not plan.takes_prefill:
                return
            if request.status is RequestStatus.RUNNING:
                plan.add_chunk(request)
            elif overtaken and overtaken[-1].num_overtakes >= _MAX_OVERTAKES:
                continue
            elif self._admit(request, overtaken, plan):
                plan.add_chunk(request)

    def _admit(self, request: Request, overtaken: list[Request], plan: StepPlan) -> bool:
        """Let a request run if it fits, with what is cached of it."""
        room = self._room
        if not self._has_seat and not room.has_lower(request):
            return False
        prefix = self._tables.find_prefix(request)
        if prefix is None:
            return False
        if not self._has_seat or not room.is_there(request, prefix):
            victims = room.victims(request, prefix)
            if not victims:
                overtaken.append(request)
                return False
            if plan.is_ahead:
                plan.must_wait = True
                return False
            for victim in victims:
                self._preempt(victim, plan)
        self._waiting.remove(request)
        self._tables.start(request, prefix)
        self._running.start(request)
        if not request.num_preemptions:
            self._count_admission(request, plan.now)
        for other in overtaken:
            other.num_overtakes += 1
        room.look(list(self._running))
        return True

    def _make_room(self, request: Request) -> bool:
        """Preempt others until a block can be had; False if none can."""
        while not self._pool.num_usable_blocks:
            victim = self._preemption.victim(request, list(self._running))
            if victim is None:
                return False
            self._preempt(victim)
        return True

    def _free_the_first(self, plan: StepPlan) -> None:
        """Nobody can go on: all hold blocks and want more. Give the first by rank what it needs."""
        request = min(self._running, key=lambda r: r.rank)
        has_room = self._make_room(request)
        assert has_room, "the only request has no room, and was admitted"
        if request in self._running.decoding:
            self._tables.grow(request, request.num_tokens)
            plan.decodes.append(self._running.decoding[request])
        else:
            plan.add_chunk(request)

    def _preempt(self, victim: Request, plan: StepPlan | None = None) -> None:
        if plan is not None:
            plan.drop(victim)
        self.counts.preempt(victim, self._preemption.num_lost_tokens(victim))
        self._running.remove(victim)
        self._tables.release(victim, keep=True)
        victim.status = RequestStatus.WAITING
        self._enqueue(victim)

    def _enqueue(self, request: Request) -> None:
        self._set_due(request, self._tables.num_cached_tokens(request))
        self._waiting.add(request)

    def _set_due(self, request: Request, num_computed: int) -> None:
        service_s = self._step_time.prefill_s(request.num_tokens - num_computed, num_computed)
        request.due_s = request.arrival_s + service_s
        if request.deadline is not None:
            # One that cannot be met any more comes first of its time, not before all others.
            latest_s = max(request.arrival_s, request.deadline - service_s)
            request.due_s = min(request.due_s, latest_s)

    @property
    def _has_seat(self) -> bool:
        return self.num_running < self._max_num_seqs

    def _count_admission(self, request: Request, now: float) -> None:
        request.started_s = now
        request.num_cached_tokens = request.num_computed_tokens
        self._fair_share.charge(request, request.num_missing_tokens)
        self.counts.admit(request, looks_up=self._pool.enable_prefix_caching)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.forget_unknown()
        self._tables.release(request)
        num_drawn_here = request.num_output_tokens - request.num_resumed_tokens
        self._fair_share.charge(request, OUTPUT_COST * num_drawn_here)
        self._fair_share.leave(request.tenant)
        if request.num_output_tokens:
            # One that never got a turn tells nothing of how long outputs get.
            self._lengths.observe(request.num_output_tokens)
        # Siblings name each other in a circle, which only the garbage collector would free.
        request.siblings = []
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
