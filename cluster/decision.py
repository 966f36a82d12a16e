"""Why a request went where it went: the numbers that were compared, kept for a while."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np

from cluster.fleet import FleetView
from cluster.placement import Choice, Reason
from cluster.request_need import RequestNeed

_NUM_CANDIDATES: Final = 3
_MAX_DECISIONS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the best replicas as it was seen then."""

    replica_id: str
    cost: float
    """In the policy's unit; for `kv` seconds, or prefill tokens times sequences until step times
    are learned."""
    num_cached_blocks: int
    num_available_blocks: int
    num_active: int
    num_queued_prefill_tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """One placement."""

    request_id: str
    reason: Reason
    num_prompt_tokens: int
    num_blocks: int
    """What the request takes where nothing of it is cached."""
    num_considered: int
    """Replicas that were compared."""
    candidates: tuple[Candidate, ...]
    """Best first: the chosen one and the runners-up."""

    @classmethod
    def of(cls, need: RequestNeed, view: FleetView, choice: Choice) -> "Decision":
        """Note down a choice."""
        costs = choice.costs
        # The chosen row first, even where another costs the same.
        rows = [choice.row]
        if len(costs) > _NUM_CANDIDATES:
            best = np.argpartition(costs, _NUM_CANDIDATES)[: _NUM_CANDIDATES + 1]
        else:
            best = np.arange(len(costs))
        others = sorted((float(costs[row]), int(row)) for row in best if row != choice.row)
        rows += [row for cost, row in others if cost < math.inf]
        return cls(
            need.request_id,
            choice.reason,
            need.num_prompt_tokens,
            need.num_blocks(view.block_size[choice.row]),
            int(np.count_nonzero(costs < math.inf)),
            tuple(_candidate(view, choice, row) for row in rows[:_NUM_CANDIDATES]),
        )


def _candidate(view: FleetView, choice: Choice, row: int) -> Candidate:
    return Candidate(
        view.replica_ids[row],
        float(choice.costs[row]),
        int(view.num_cached_blocks[row]),
        int(view.num_available_blocks[row]),
        int(view.num_active[row]),
        int(view.num_queued_prefill_tokens[row]),
    )


class DecisionLog:
    """The newest decisions by request, and how often each reason was given."""

    def __init__(self, max_decisions: int = _MAX_DECISIONS) -> None:
        self.num_by_reason = dict.fromkeys(Reason, 0)
        self._max_decisions = max_decisions
        self._decisions: OrderedDict[str, Decision] = OrderedDict()

    def add(self, decision: Decision) -> None:
        """Note a decision; the oldest goes."""
        self.num_by_reason[decision.reason] += 1
        self._decisions[decision.request_id] = decision
        if len(self._decisions) > self._max_decisions:
            self._decisions.popitem(last=False)

    def find(self, request_id: str) -> list[Decision]:
        """Return the decisions on a request, one for each of its attempts, oldest first."""
        return [
            decision
            for key, decision in self._decisions.items()
            if key == request_id or key.rpartition(".")[0] == request_id
        ]
