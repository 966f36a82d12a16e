"""Choose a replica for a request: of those with room the one of the lowest predicted cost.

Pure: a view and a need in, a choice out. Every policy has the signature of `choose`. The numbers
come from simulations of eleven policies on a public conversation trace.
"""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np

from cluster.fleet import Bools, FleetView, Floats
from cluster.request_need import RequestNeed

EXPECTED_OUTPUT_TOKENS: Final = 100
HELD_UP_COST: Final = 0.3
"""A second for which prefill holds up another sequence counts as so much of one's own. Between 0
(prefill time alone) and 1 (as LMetric's product has it): chosen by simulation."""
WORK_COST: Final = 8.0
"""A second of prefill that a cached prefix would have saved counts as so many of waiting: all who
come later lack it, wherever they go, and the copy of the prefix takes blocks from another one.
Chosen by simulation; from 4 to 16 it makes little difference."""
LOW_FREE_SHARE: Final = 0.15
"""With less than this share of blocks left a replica begins to look dear."""
LOW_FREE_COST_S: Final = 4.0
"""Cost of placing a request that takes the last block."""
LOW_FREE_FACTOR: Final = 1000.0
"""The same for the product, which grows with the square of a burst: as dear as 30 requests."""
SEATS_SHARE: Final = 0.25
"""Of a replica's seats, which may have to be free for the choices of one request."""


class Reason(StrEnum):
    """Why a replica was chosen."""

    ONLY = "only"
    """No other has room."""
    PREFIX = "prefix"
    """Lowest cost, and it has some of the prompt cached."""
    SESSION = "session"
    """Lowest cost, because the last turn of the request's session was there."""
    COST = "cost"
    """Lowest cost."""
    QUEUE = "queue"
    """None has room: this one's queue is the shortest."""
    LATE = "late"
    """Nothing was heard of any for too long: here we have the fewest requests."""
    POLICY = "policy"
    """A policy that knows no reasons."""


class Choice(NamedTuple):
    """A row of the view, and why."""

    row: int
    reason: Reason
    costs: Floats
    """What was compared, inf where there was nothing to; its unit is the policy's."""

    @property
    def has_room(self) -> bool:
        """Whether the request can start there, as far as the policy asks."""
        return self.reason is not Reason.QUEUE


PlacementPolicy = Callable[[FleetView, RequestNeed, int], Choice | None]
"""(view, need, rotation) -> choice, None where nobody serves; `rotation` breaks ties alone."""


def choose(view: FleetView, need: RequestNeed, rotation: int) -> Choice | None:
    """Of the replicas with room take the cheapest; where none has any that with the shortest queue
    (the engine queues); of those not heard of for long that where we have the least."""
    fresh = view.may_serve & ~view.is_late
    roomy = fresh & has_room(view, need)
    num_roomy = np.count_nonzero(roomy)
    if num_roomy:
        # Costs compare only in one unit: seconds once every engine has learned its step time.
        has_learned = view.prefill_token_s + view.constant_s + view.seq_s > 0
        all_have = bool(np.all(has_learned | ~roomy))
        cost = predicted_seconds(view, need) if all_have else load_product(view, need)
        row, costs = least(cost, roomy, rotation, view.num_active)
        if num_roomy == 1:
            return Choice(row, Reason.ONLY, costs)
        return Choice(row, _why_cheapest(view, row), costs)
    if fresh.any():
        queue = view.num_queued_prefill_tokens
        row, costs = least(queue, fresh, rotation, view.num_active)
        return Choice(row, Reason.QUEUE, costs)
    if view.may_serve.any():
        row, costs = least(view.num_own_requests, view.may_serve, rotation)
        return Choice(row, Reason.LATE, costs)
    return None


def _why_cheapest(view: FleetView, row: int) -> Reason:
    num_cached_tokens = view.num_cached_blocks[row] * view.block_size[row]
    if view.num_session_tokens[row] > num_cached_tokens:
        return Reason.SESSION
    return Reason.PREFIX if num_cached_tokens else Reason.COST


def least(
    cost: Floats, among: Bools, rotation: int, then: Floats | None = None
) -> tuple[int, Floats]:
    """Return the row of the least cost, of equals that which is less in `then`, of those each in
    turn; and the costs, inf for rows that are not `among`."""
    costs = np.where(among, cost, math.inf)
    rows = np.flatnonzero(costs == costs.min())
    if then is not None and len(rows) > 1:
        rows = rows[then[rows] == then[rows].min()]
    if len(rows) == 1:
        return int(rows[0]), costs
    # Turns are counted among all, so that everyone's comes round.
    turns = (np.searchsorted(np.flatnonzero(among), rows) - rotation) % np.count_nonzero(among)
    return int(rows[turns.argmin()]), costs


def has_room(view: FleetView, need: RequestNeed) -> Bools:
    """Where the request could start at once and leave alone what it has to."""
    left = view.num_available_blocks - num_missing_blocks(view, need)
    # Whole blocks: at least so many as the share rounded up.
    fits: Bools = left >= np.ceil(need.spare_share * view.num_blocks)
    fits &= view.num_free_seats >= 1
    if need.num_choices > 1:
        # Who has more choices than that waits for the rest in the engine: for all to be free at
        # once it would hold up everybody else.
        most = SEATS_SHARE * (view.num_free_seats + view.num_active)
        fits &= view.num_free_seats >= np.minimum(need.num_choices, most)
    # There will never be more room than in an empty one: what does not fit is the engine's to say.
    fits |= view.num_active == 0
    return fits


def num_missing_blocks(view: FleetView, need: RequestNeed) -> Floats:
    """Blocks that the request would take."""
    num_prompt_blocks = np.ceil(need.num_prompt_tokens / view.block_size)
    missing: Floats = num_prompt_blocks + need.num_choices - view.num_cached_blocks
    return missing


def predicted_seconds(view: FleetView, need: RequestNeed) -> Floats:
    """Seconds to prefill what is queued and this prompt, more where it holds up many, and to decode
    a usual output beside the others, plus penalties for what the prompt takes from the whole
    cluster and when few blocks would be left."""
    num_missing = _num_missing_tokens(view, need)
    num_seqs = view.num_active + need.num_choices
    cost: Floats = (view.num_queued_prefill_tokens + num_missing) * view.prefill_token_s
    cost *= 1 + HELD_UP_COST * view.num_active
    # At the usual speed: a slow replica is no dearer to others for being slow.
    usual_s = view.prefill_token_s @ view.may_serve / np.count_nonzero(view.may_serve)
    cost += WORK_COST * usual_s * num_missing
    cost += EXPECTED_OUTPUT_TOKENS * (view.constant_s + view.seq_s * num_seqs)
    cost += LOW_FREE_COST_S * _free_shortfall(view, need) ** 2
    return cost


def load_product(view: FleetView, need: RequestNeed) -> Floats:
    """Prefill tokens times sequences (LMetric), which needs no learned rates, and the same
    penalty as a factor."""
    num_tokens = view.num_queued_prefill_tokens + _num_missing_tokens(view, need)
    product = num_tokens * (view.num_active + need.num_choices)
    result: Floats = product * (1 + LOW_FREE_FACTOR * _free_shortfall(view, need) ** 2)
    return result


def _num_missing_tokens(view: FleetView, need: RequestNeed) -> Floats:
    """Tokens of the prompt that have to be computed; one at least, to have its logits."""
    num_cached_tokens = view.num_cached_blocks * view.block_size
    if need.num_session_tokens:
        num_cached_tokens = np.maximum(num_cached_tokens, view.num_session_tokens)
    num_missing: Floats = np.maximum(1.0, need.num_prompt_tokens - num_cached_tokens)
    return num_missing


def _free_shortfall(view: FleetView, need: RequestNeed) -> Floats:
    """0 while enough blocks would be left, 1 when none would, counting what all will grow by."""
    num_output_tokens = min(need.max_tokens or EXPECTED_OUTPUT_TOKENS, EXPECTED_OUTPUT_TOKENS)
    num_active = view.num_active + need.num_choices
    # On average a sequence is half-way, and half of the rest ends before it is written.
    growth = 0.25 * num_output_tokens / view.block_size * num_active
    num_left = view.num_available_blocks - num_missing_blocks(view, need) - growth
    shortfall: Floats = np.maximum(0.0, LOW_FREE_SHARE - num_left / view.num_blocks)
    return shortfall / LOW_FREE_SHARE
