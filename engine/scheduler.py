"""Chooses the requests of the next step and applies what the step brought.

Continuous batching with chunked prefill: a request is tokens known and tokens computed, and a
step closes the gap by as much as budget and blocks allow. Knows requests and blocks; knows
nothing of tensors, clocks or clients.

Order is arrival order throughout, which makes starvation impossible:
- Every waiting request is younger than every running one, because admission takes the head of
  the queue only and preemption the youngest only.
- A request may take blocks from younger ones, never from older ones. So the oldest always
  computes at least one token a step, and every request becomes the oldest in the end.
- Admission ends where the budget does. So no more requests run than the budget has tokens, and
  only the youngest of them can be part-way through its prefill: one pass in arrival order serves
  all decodes first, and a request that is preempted was not scheduled in the same step.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.batch import Batch, SampledToken, ScheduledRequest
from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.output import FinishReason, TokenOutput
from engine.prefix_hash import block_hashes, root_hash
from engine.request import Request, RequestStatus

# Share of the pool that admission leaves alone, so that those running can grow a while.
_WATERMARK = 0.01


@dataclass(slots=True)
class _Plan:
    """The step being put together."""

    budget: int
    decodes: list[ScheduledRequest] = field(default_factory=list)
    prefills: list[ScheduledRequest] = field(default_factory=list)


class Scheduler:
    """Owns the waiting and running requests of one engine and the blocks they hold."""

    def __init__(self, config: EngineConfig, pool: BlockPool) -> None:
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.num_cache_queried_tokens = 0
        self.num_cache_hit_tokens = 0
        self._model_name = config.model_name
        self._pool = pool
        self._block_size = pool.block_size
        self._max_num_batched_tokens = config.max_num_batched_tokens
        self._max_num_seqs = config.max_num_seqs
        self._watermark = max(1, int(pool.num_blocks * _WATERMARK))
        self._waiting: OrderedDict[Request, None] = OrderedDict()
        # Each with its decode, which is the same every step and so made once.
        self._running: dict[Request, ScheduledRequest] = {}
        self._num_waiting_tokens = 0
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
        """Whether a step would compute something."""
        return bool(self._running or self._waiting)

    @property
    def num_queued_prefill_tokens(self) -> int:
        """Known tokens not computed yet, of waiting and prefilling requests."""
        num_tokens = self._num_waiting_tokens
        for request in self._running:
            gap = len(request.token_ids) - request.num_computed_tokens
            if gap > 1:
                num_tokens += gap
        return num_tokens

    def add(self, request: Request) -> None:
        """Queue a request. The whole of it, `max_tokens` included, must fit the pool."""
        request.arrival = self._next_arrival
        self._next_arrival += 1
        self._extend_hashes(request)
        self._waiting[request] = None
        self._num_waiting_tokens += request.num_tokens

    def abort(self, request: Request) -> None:
        """End a request now, whatever it does, and take its blocks back."""
        if request.status is RequestStatus.WAITING:
            del self._waiting[request]
            self._num_waiting_tokens -= request.num_tokens
        else:
            del self._running[request]
        self._finish(request, FinishReason.ABORT)

    def schedule(self) -> Batch:
        """Choose what the next step computes and allocate its blocks."""
        plan = _Plan(budget=self._max_num_batched_tokens)
        self._schedule_running(plan)
        self._admit_waiting(plan)
        # One-token chunks run like decodes, so they stand next to them.
        plan.prefills.sort(key=lambda scheduled: scheduled.num_scheduled_tokens > 1)
        return Batch(plan.decodes + plan.prefills)

    def update(
        self, batch: Batch, sampled_tokens: Sequence[SampledToken | None]
    ) -> list[TokenOutput]:
        """Apply a computed batch; one entry of `sampled_tokens` for each of its sequences."""
        block_size = self._block_size
        outputs = []
        for scheduled, sampled in zip(batch.requests, sampled_tokens, strict=True):
            request = scheduled.request
            before = request.num_computed_tokens
            computed = before + scheduled.num_scheduled_tokens
            request.num_computed_tokens = computed
            if computed // block_size > before // block_size:
                self._register_blocks(request, before // block_size, computed // block_size)
            if sampled is None:
                assert computed < len(request.token_ids), "the executor owes a token"
                continue
            output = self._append(request, sampled)
            outputs.append(output)
            if output.finish_reason is not None:
                del self._running[request]
                self._finish(request, output.finish_reason)
        self.num_generated_tokens += len(outputs)
        return outputs

    def _schedule_running(self, plan: _Plan) -> None:
        block_size = self._block_size
        for request, decode in list(self._running.items()):
            if request.status is not RequestStatus.RUNNING:
                return  # preempted just now, and so are all that follow
            num_computed = request.num_computed_tokens
            if len(request.token_ids) - num_computed > 1:
                self._schedule_prefill(request, plan)
                continue
            if num_computed == len(request.block_ids) * block_size:
                if not self._make_room(request):
                    continue
                request.block_ids += self._take_blocks(1)
            plan.decodes.append(decode)
            plan.budget -= 1

    def _schedule_prefill(self, request: Request, plan: _Plan) -> None:
        """Schedule the next chunk, as far as the blocks at hand reach.

        It is the youngest: there is nobody to take blocks from.
        """
        num_reachable = len(request.block_ids) + self._pool.num_usable_blocks
        end = min(request.num_tokens, num_reachable * self._block_size)
        chunk = min(end - request.num_computed_tokens, plan.budget)
        if chunk > 0:
            self._schedule_chunk(request, chunk, plan)

    def _schedule_chunk(self, request: Request, chunk: int, plan: _Plan) -> None:
        num_blocks = self._num_blocks_lacking(request, request.num_computed_tokens + chunk)
        request.block_ids += self._take_blocks(num_blocks)
        plan.prefills.append(ScheduledRequest(request, chunk))
        plan.budget -= chunk

    def _admit_waiting(self, plan: _Plan) -> None:
        """Admit from the head of the queue until one does not fit; none behind it may pass."""
        while self._waiting and plan.budget > 0 and len(self._running) < self._max_num_seqs:
            request = next(iter(self._waiting))
            if not self._admit(request):
                return
            del self._waiting[request]
            self._num_waiting_tokens -= request.num_tokens
            self._running[request] = ScheduledRequest(request, 1)
            request.status = RequestStatus.RUNNING
            self._count_admission(request)
            chunk = min(request.num_tokens - request.num_computed_tokens, plan.budget)
            self._schedule_chunk(request, chunk, plan)

    def _admit(self, request: Request) -> bool:
        """Give the request its cached prefix if the rest of what it knows fits as well.

        Room for the first chunk alone would not do: the request would soon stand still with
        its blocks held, or lose them. Nothing is reserved for tokens yet to be generated.
        """
        pool = self._pool
        num_kept = self._watermark if self._running else 0
        if pool.num_usable_blocks <= num_kept:
            return False
        # The last known token is always computed: its logits give the next one.
        num_shareable = (request.num_tokens - 1) // self._block_size
        request.block_ids += pool.lookup(request.block_hashes[:num_shareable])
        num_lacking = self._num_blocks_lacking(request, request.num_tokens)
        if num_lacking > pool.num_usable_blocks - num_kept:
            self._release(request)
            return False
        request.num_computed_tokens = len(request.block_ids) * self._block_size
        return True

    def _count_admission(self, request: Request) -> None:
        if request.num_preemptions:
            return
        request.num_cached_tokens = request.num_computed_tokens
        self.num_prompt_tokens += request.num_prompt_tokens
        if self._pool.enable_prefix_caching:
            self.num_cache_queried_tokens += request.num_prompt_tokens
            self.num_cache_hit_tokens += request.num_cached_tokens

    def _make_room(self, request: Request) -> bool:
        """Preempt the youngest requests until a block can be had.

        False if none can: then the request sits the step out and keeps what it has, which
        costs nothing, because older requests may still take it.
        """
        while not self._pool.num_usable_blocks:
            youngest = next(reversed(self._running))
            if youngest is request:
                return False
            self._preempt(youngest)
        return True

    def _preempt(self, victim: Request) -> None:
        del self._running[victim]
        self._release(victim)
        victim.status = RequestStatus.WAITING
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting[victim] = None
        self._waiting.move_to_end(victim, last=False)
        self._num_waiting_tokens += victim.num_tokens

    def _take_blocks(self, num_blocks: int) -> list[int]:
        block_ids = self._pool.allocate(num_blocks)
        assert block_ids is not None, "room was checked before"
        return block_ids

    def _num_blocks_lacking(self, request: Request, num_tokens: int) -> int:
        """Blocks it needs besides its own to hold `num_tokens`."""
        return -(-num_tokens // self._block_size) - len(request.block_ids)

    def _register_blocks(self, request: Request, first: int, end: int) -> None:
        """Offer blocks [first, end), now full, to the prefix cache."""
        if not self._pool.enable_prefix_caching:
            return
        if len(request.block_hashes) < end:
            self._extend_hashes(request)
        for i in range(first, end):
            self._pool.register(request.block_ids[i], request.block_hashes[i])

    def _extend_hashes(self, request: Request) -> None:
        if self._pool.enable_prefix_caching:
            known = request.block_hashes
            parent = known[-1] if known else root_hash(self._model_name, request.cache_salt)
            known += block_hashes(parent, request.token_ids, self._block_size, len(known))

    def _append(self, request: Request, sampled: SampledToken) -> TokenOutput:
        token_id = sampled.token_id
        index = len(request.token_ids) - len(request.prompt_token_ids)
        request.token_ids.append(token_id)
        finish_reason = None
        if token_id in request.stop_token_ids:
            finish_reason = FinishReason.STOP
        elif index + 1 >= request.max_tokens:
            finish_reason = FinishReason.LENGTH
        return TokenOutput(
            request.request_id,
            request.choice_index,
            index,
            [token_id],
            None if sampled.logprob is None else [sampled.logprob],
            finish_reason,
            request.num_cached_tokens,
        )

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self._release(request)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason

    def _release(self, request: Request) -> None:
        self._pool.free(request.block_ids)
        request.block_ids.clear()
        request.num_computed_tokens = 0
