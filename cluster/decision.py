"""Why a request went where it went: the numbers that were compared, kept for a while."""

import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np

from cluster.fleet import FleetView
from cluster.placement import Choice, Reason
from cluster.request_need import RequestNeed

_NUM_CANDIDATES: Final = 3
_MAX_DECISIONS: Final = 10_000
_ATTEMPT: Final = r"(?:(?:-\d+)?\.\d+)?"


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
        rows = _best(choice)
        fields = (
            choice.costs[rows].tolist(),
            *(
                column[rows].astype(int).tolist()
                for column in (
                    view.num_cached_blocks,
                    view.num_available_blocks,
                    view.num_active,
                    view.num_queued_prefill_tokens,
                )
            ),
        )
        return cls(
            need.request_id,
            choice.reason,
            need.num_prompt_tokens,
            need.num_blocks(view.block_size[choice.row]),
            int(np.count_nonzero(choice.costs < math.inf)),
            tuple(map(Candidate, [view.replica_ids[row] for row in rows], *fields)),
        )


def _best(choice: Choice) -> list[int]:
    """Return the rows of least cost; the chosen one is first, even where others cost the same."""
    costs = choice.costs.copy()
    costs[choice.row] = math.inf
    rows = [choice.row]
    # So few that to look for the least again and again is quicker than to sort.
    for _ in range(_NUM_CANDIDATES - 1):
        row = int(costs.argmin())
        if costs[row] == math.inf:
            break
        rows.append(row)
        costs[row] = math.inf
    return rows


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

    def chosen(self, request_id: str) -> str | None:
        """Return the replica that this very attempt was last placed on; None: not known."""
        decision = self._decisions.get(request_id)
        return None if decision is None else decision.candidates[0].replica_id

    def find(self, request_id: str) -> list[Decision]:
        """Return the decisions on a request, one for each of its attempts, oldest first.

        Those on `a` are named `a.0`, `a.1`; of a list of prompts `a-0.0`, `a-1.0`.
        """
        is_one = re.compile(re.escape(request_id) + _ATTEMPT).fullmatch
        return [decision for key, decision in self._decisions.items() if is_one(key)]
