"""The ways to place a request, by name: ours, and those that others use, to compare with.

All see the same view and the same ledger, so they differ in nothing but the choice.
"""

import hashlib
import math
import random
from collections.abc import Callable
from typing import Final

import numpy as np

from cluster.fleet import FleetView, Floats
from cluster.placement import (
    Choice,
    PlacementPolicy,
    Reason,
    choose,
    least,
    load_product,
)
from cluster.policy_name import PolicyName
from cluster.request_need import RequestNeed

_PREFIX_TOKENS: Final = 2048
"""What `prefix_hash` looks at of a prompt: about a system prompt and the first turn."""


def _by(cost: Callable[[FleetView, RequestNeed], Floats]) -> PlacementPolicy:
    """Take the serving replica of the least cost; of equals, each in turn."""

    def choose_least(view: FleetView, need: RequestNeed, rotation: int) -> Choice | None:
        if not view.may_serve.any():
            return None
        row, costs = least(cost(view, need), view.may_serve, rotation)
        return Choice(row, Reason.POLICY, costs)

    return choose_least


def _power_of_two(view: FleetView, _need: RequestNeed, rotation: int) -> Choice | None:
    """Take the less busy of two replicas drawn at random (M. Mitzenmacher, 1996)."""
    rows = np.flatnonzero(view.may_serve).tolist()
    if not rows:
        return None
    # Drawn by the rotation, which rises with each choice: a run can be repeated.
    drawn = random.Random(rotation).sample(rows, min(2, len(rows)))  # noqa: S311
    costs = np.full(len(view.num_active), math.inf)
    costs[drawn] = view.num_active[drawn]
    return Choice(min(drawn, key=lambda row: costs[row]), Reason.POLICY, costs)


def _prefix_hash(view: FleetView, need: RequestNeed, rotation: int) -> Choice | None:
    """Send prompts that begin alike to the same replica (rendezvous hashing)."""
    rows = np.flatnonzero(view.may_serve).tolist()
    if not rows:
        return None
    num_keys = max(1, _PREFIX_TOKENS // int(view.block_size[rows[0]]))
    # A shorter prompt is known by all that it has; one without a full block goes by turns.
    keys = need.block_keys[:num_keys] or (rotation,)

    def weight(row: int) -> bytes:
        text = f"{keys} {view.replica_ids[row]}"
        return hashlib.blake2b(text.encode(), digest_size=8).digest()

    return Choice(min(rows, key=weight), Reason.POLICY, np.where(view.may_serve, 0.0, math.inf))


POLICIES: Final[dict[str, PlacementPolicy]] = {
    PolicyName.KV: choose,
    PolicyName.ROUND_ROBIN: _by(lambda view, _need: np.zeros_like(view.num_active)),
    PolicyName.LEAST_REQUESTS: _by(lambda view, _need: view.num_active),
    PolicyName.POWER_OF_TWO: _power_of_two,
    PolicyName.MOST_FREE: _by(lambda view, _need: -view.num_available_blocks),
    PolicyName.PREFIX_HASH: _prefix_hash,
    PolicyName.LMETRIC: _by(load_product),
}
