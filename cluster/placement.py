"""Rank replicas for a request: by room, then by predicted cost.

Pure: views and a need in, replica ids out. Every policy has the signature of `rank`. The
numbers come from simulations of eleven policies on a public conversation trace.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cluster.ledger import LedgerEntry, LedgerLoad
from cluster.snapshot import ReplicaSnapshot
from engine.request import GenerateRequest
from engine.snapshot import EngineState

MAX_AGE_S: Final = 2.0
"""An older view is used only if there is nothing better."""
WATERMARK: Final = 0.01
"""Share of the blocks that placement leaves alone."""
EXPECTED_OUTPUT_TOKENS: Final = 100
LOW_FREE_SHARE: Final = 0.15
"""With less than this share of blocks left a replica begins to look dear."""
LOW_FREE_COST_S: Final = 4.0
"""Cost of placing a request that takes the last block."""
LOW_FREE_FACTOR: Final = 1000.0
"""The same for the product, which grows with the square of a burst: as dear as 30 requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestNeed:
    """What a request asks of a replica."""

    request_id: str
    num_prompt_tokens: int
    num_choices: int = 1
    max_tokens: int | None = None
    block_keys: tuple[int, ...] = ()
    """Of the prompt's full blocks, see cluster/prefix_index.py; empty: not known."""

    @classmethod
    def of(cls, request: GenerateRequest, block_keys: tuple[int, ...] = ()) -> "RequestNeed":
        """The need of a request as it goes to the engine."""
        return cls(
            request_id=request.request_id,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_choices=request.params.n,
            max_tokens=request.params.max_tokens,
            block_keys=block_keys,
        )

    def num_blocks(self, block_size: int) -> int:
        """Blocks to hold the prompt and the first tokens of each choice."""
        return math.ceil(self.num_prompt_tokens / block_size) + self.num_choices

    def entry(self, view: "PlacementView") -> LedgerEntry:
        """What placing it on a replica adds to the ledger."""
        return LedgerEntry(
            view.replica_id,
            self.num_choices,
            self.num_blocks(view.block_size) - view.num_cached_blocks,
            self.num_prompt_tokens - view.num_cached_tokens,
        )


class PlacementView(NamedTuple):
    """A replica as placement sees it: its newest snapshot plus what is on the way to it."""

    replica_id: str
    is_serving: bool
    age_s: float
    block_size: int
    num_blocks: int
    num_available_blocks: int
    """Free or evictable, less what queued prompts and requests on the way will take."""
    num_active: int
    """Sequences running, waiting or on the way."""
    num_queued_prefill_tokens: int
    num_own_requests: int
    """Requests that this process placed there and that have not ended."""
    step_time_s: tuple[float, float, float]
    num_cached_blocks: int = 0
    """Of the request's prompt, as far as is known."""

    @classmethod
    def of(
        cls, replica: ReplicaSnapshot, load: LedgerLoad, num_cached_blocks: int = 0
    ) -> "PlacementView":
        """Snapshot, ledger and what is cached of a request in one."""
        engine = replica.engine
        # A queued prompt holds no block yet, but will before anything placed after it does.
        queued = math.ceil(engine.num_queued_prefill_tokens / engine.block_size)
        queued += engine.num_waiting
        return cls(
            replica_id=replica.replica_id,
            is_serving=replica.connected and engine.state is EngineState.SERVING,
            age_s=replica.age_s,
            block_size=engine.block_size,
            num_blocks=engine.num_blocks,
            num_available_blocks=engine.num_usable_blocks - queued - load.num_blocks,
            num_active=engine.num_running + engine.num_waiting + load.num_seqs,
            num_queued_prefill_tokens=(engine.num_queued_prefill_tokens + load.num_prefill_tokens),
            num_own_requests=load.num_requests,
            step_time_s=engine.step_time_s,
            num_cached_blocks=num_cached_blocks,
        )

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the request's prompt that need not be computed."""
        return self.num_cached_blocks * self.block_size

    def has_room(self, need: RequestNeed) -> bool:
        """Whether the request could start at once and leave the watermark untouched."""
        num_blocks = need.num_blocks(self.block_size) - self.num_cached_blocks
        return self.num_available_blocks >= num_blocks + math.ceil(WATERMARK * self.num_blocks)


PlacementPolicy = Callable[[Sequence[PlacementView], RequestNeed, int], list[str]]
"""(views, need, rotation) -> replica ids, best first; `rotation` breaks ties, and only those."""


def rank(views: Sequence[PlacementView], need: RequestNeed, rotation: int) -> list[str]:
    """Replicas that may take the request: those with room by cost, then the full ones by their
    queue (the engine queues), then those not heard of for long by how little we have there."""
    turn = {view.replica_id: (i - rotation) % len(views) for i, view in enumerate(views)}
    serving = [view for view in views if view.is_serving]
    fresh = [view for view in serving if view.age_s <= MAX_AGE_S]
    stale = [view for view in serving if view.age_s > MAX_AGE_S]
    roomy: list[PlacementView] = []
    full: list[PlacementView] = []
    for view in fresh:
        (roomy if view.has_room(need) else full).append(view)
    # Costs compare only in one unit: seconds once every engine has learned its step time.
    cost = predicted_seconds if all(any(view.step_time_s) for view in roomy) else load_product
    roomy.sort(key=lambda view: (cost(view, need), view.num_active, turn[view.replica_id]))
    full.sort(
        key=lambda view: (view.num_queued_prefill_tokens, view.num_active, turn[view.replica_id])
    )
    stale.sort(key=lambda view: (view.num_own_requests, turn[view.replica_id]))
    return [view.replica_id for view in (*roomy, *full, *stale)]


def predicted_seconds(view: PlacementView, need: RequestNeed) -> float:
    """Seconds to prefill what is queued and this prompt, and to decode a usual output beside
    the others, plus a penalty when few blocks would be left."""
    constant_s, seq_s, prefill_token_s = view.step_time_s
    num_prefill_tokens = _num_prefill_tokens(view, need)
    step_s = constant_s + seq_s * (view.num_active + need.num_choices)
    shortfall = _free_shortfall(view, need)
    return (
        num_prefill_tokens * prefill_token_s
        + EXPECTED_OUTPUT_TOKENS * step_s
        + LOW_FREE_COST_S * shortfall**2
    )


def load_product(view: PlacementView, need: RequestNeed) -> float:
    """Prefill tokens times sequences (LMetric), which needs no learned rates, and the same
    penalty as a factor."""
    num_prefill_tokens = _num_prefill_tokens(view, need)
    product = num_prefill_tokens * (view.num_active + need.num_choices)
    return product * (1 + LOW_FREE_FACTOR * _free_shortfall(view, need) ** 2)


def _num_prefill_tokens(view: PlacementView, need: RequestNeed) -> int:
    """Tokens to compute until the request has its first: what is queued and what it misses."""
    num_missing = max(1, need.num_prompt_tokens - view.num_cached_tokens)
    return view.num_queued_prefill_tokens + num_missing


def _free_shortfall(view: PlacementView, need: RequestNeed) -> float:
    """0 while enough blocks would be left, 1 when none would, counting what all will grow by."""
    num_output_tokens = min(need.max_tokens or EXPECTED_OUTPUT_TOKENS, EXPECTED_OUTPUT_TOKENS)
    num_active = view.num_active + need.num_choices
    # On average a sequence is half-way, and half of the rest ends before it is written.
    growth = 0.25 * num_output_tokens / view.block_size * num_active
    num_taken = need.num_blocks(view.block_size) - view.num_cached_blocks
    num_left = view.num_available_blocks - num_taken - growth
    free_share = num_left / view.num_blocks
    return max(0.0, (LOW_FREE_SHARE - free_share) / LOW_FREE_SHARE)
