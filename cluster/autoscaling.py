"""How many replicas a deployment needs, from the KV blocks its requests need.

Pure: the clock and the memory between two decisions are handed in and out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

TARGET_USE: Final = 0.75
"""Share of its KV blocks that a replica should have in use."""
USE_AFTER_REMOVAL: Final = 0.6
"""A replica goes only if the others then stay below this; the gap to the target stops swings."""
LOW_PERIOD_S: Final = 60.0
"""A replica goes only after the demand was low for this long."""
WAIT_PERIOD_S: Final = 2.0
"""Requests that wait for longer than this while others run need more replicas; every request
waits for a moment."""

LOW_SINCE: Final = "low_since_s"
HIGHEST_NEED: Final = "highest_need"
WAITING_SINCE: Final = "waiting_since_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDemand:
    """What the requests on one replica ask of it."""

    block_size: float
    num_blocks: float
    num_used_blocks: float
    """Neither free nor evictable."""
    num_waiting: float
    num_running: float
    num_queued_prefill_tokens: float

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> "ReplicaDemand":
        """Read it from numbers by name; one that is missing counts as 0."""
        return cls(
            block_size=metrics.get("block_size", 0),
            num_blocks=metrics.get("num_blocks", 0),
            num_used_blocks=metrics.get("num_used_blocks", 0),
            num_waiting=metrics.get("num_waiting", 0),
            num_running=metrics.get("num_running", 0),
            num_queued_prefill_tokens=metrics.get("num_queued_prefill_tokens", 0),
        )

    @property
    def num_needed_blocks(self) -> float:
        """Blocks in use and blocks that queued prompts will take."""
        queued = math.ceil(self.num_queued_prefill_tokens / self.block_size)
        return self.num_used_blocks + queued + self.num_waiting


def desired_replicas(
    demands: Sequence[ReplicaDemand],
    *,
    num_replicas: int,
    min_replicas: int,
    max_replicas: int,
    num_queued_requests: int,
    now_s: float,
    state: Mapping[str, Any],
) -> tuple[int, dict[str, Any]]:
    """Return how many replicas there should be, and the state for the next call.

    `num_replicas` is the present target: replicas that are still starting count, so that nobody
    orders them twice. `num_queued_requests` wait outside of any replica.
    """
    # A replica that has just started may report nothing yet.
    known = [demand for demand in demands if demand.num_blocks > 0 and demand.block_size > 0]
    num_waiting = num_queued_requests + sum(demand.num_waiting for demand in known)
    waiting_since_s = min(state.get(WAITING_SINCE, now_s), now_s) if num_waiting else None
    keep: dict[str, Any] = {}
    if waiting_since_s is not None:
        keep[WAITING_SINCE] = waiting_since_s
    waits = waiting_since_s is not None and now_s - waiting_since_s >= WAIT_PERIOD_S

    need = _num_needed(known, TARGET_USE)
    if waits:
        need = max(need, _num_to_run_all(known, num_queued_requests))
    if need > num_replicas:
        return _clamp(need, min_replicas, max_replicas), keep
    # What is missing in the reports may be busy: nothing can be judged to be too much.
    if len(known) < num_replicas or waits:
        return _clamp(num_replicas, min_replicas, max_replicas), keep
    need = max(need, _num_needed(known, USE_AFTER_REMOVAL))
    if need >= num_replicas:
        return _clamp(num_replicas, min_replicas, max_replicas), keep
    low_since_s = min(state.get(LOW_SINCE, now_s), now_s)
    highest_need = max(state.get(HIGHEST_NEED, 0), need)
    if now_s - low_since_s >= LOW_PERIOD_S:
        return _clamp(highest_need, min_replicas, max_replicas), keep
    keep |= {LOW_SINCE: low_since_s, HIGHEST_NEED: highest_need}
    return _clamp(num_replicas, min_replicas, max_replicas), keep


def _num_needed(demands: Sequence[ReplicaDemand], use: float) -> int:
    """Replicas that hold all needed blocks with this share of each in use."""
    if not demands:
        return 0
    num_blocks = sum(demand.num_blocks for demand in demands) / len(demands)
    return math.ceil(sum(demand.num_needed_blocks for demand in demands) / (use * num_blocks))


def _num_to_run_all(demands: Sequence[ReplicaDemand], num_queued_requests: int) -> int:
    """Replicas that run all sequences at once, at as many each as one that is full runs now."""
    # Requests that wait where nothing runs wait for something else than room.
    full = [demand.num_running for demand in demands if demand.num_waiting and demand.num_running]
    num_seqs = sum(demand.num_running + demand.num_waiting for demand in demands)
    if full:
        return math.ceil((num_seqs + num_queued_requests) / max(full))
    return 1 if num_queued_requests else 0


def _clamp(num_replicas: int, min_replicas: int, max_replicas: int) -> int:
    return max(min_replicas, min(max_replicas, num_replicas))
