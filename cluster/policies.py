"""The ways to place a request, by name: ours, and those that others use, to compare with.

All see the same views and the same ledger, so they differ in nothing but the choice.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Final

from cluster.placement import (
    PlacementPolicy,
    PlacementView,
    RequestNeed,
    load_product,
    rank,
)

_PREFIX_BLOCKS: Final = 32
"""Blocks that `prefix_hash` looks at: 512 tokens at 16 a block, about a system prompt."""


def _by(cost: Callable[[PlacementView, RequestNeed], float]) -> PlacementPolicy:
    """Take the serving replica of the least cost; of equals, each in turn."""

    def order(views: Sequence[PlacementView], need: RequestNeed, rotation: int) -> list[str]:
        turns = ((i - rotation) % len(views) for i in range(len(views)))
        keyed = [
            (cost(view, need), turn, view.replica_id)
            for view, turn in zip(views, turns, strict=True)
            if view.is_serving
        ]
        return [replica_id for _, _, replica_id in sorted(keyed)]

    return order


def _power_of_two(views: Sequence[PlacementView], _need: RequestNeed, rotation: int) -> list[str]:
    """Take the less busy of two replicas drawn at random (M. Mitzenmacher, 1996)."""
    serving = [view for view in views if view.is_serving]
    # Drawn by the rotation, which rises with each choice: a run can be repeated.
    drawn = random.Random(rotation).sample(serving, min(2, len(serving)))  # noqa: S311
    return [view.replica_id for view in sorted(drawn, key=lambda view: view.num_active)]


def _prefix_hash(views: Sequence[PlacementView], need: RequestNeed, rotation: int) -> list[str]:
    """Send prompts that begin alike to the same replica (rendezvous hashing)."""
    serving = [view.replica_id for view in views if view.is_serving]
    # A shorter prompt is known by all that it has; one without a full block goes by turns.
    keys = need.block_keys[:_PREFIX_BLOCKS] or (rotation,)

    def weight(replica_id: str) -> bytes:
        return hashlib.blake2b(f"{keys} {replica_id}".encode(), digest_size=8).digest()

    return sorted(serving, key=weight)


POLICIES: Final[dict[str, PlacementPolicy]] = {
    "kv": rank,
    "round_robin": _by(lambda _view, _need: 0.0),
    "least_requests": _by(lambda view, _need: view.num_active),
    "power_of_two": _power_of_two,
    "most_free": _by(lambda view, _need: -view.num_available_blocks),
    "prefix_hash": _prefix_hash,
    "lmetric": _by(load_product),
}
"""By the names of `--router-policy` and `pageray simulate --policy`."""
DEFAULT_POLICY: Final = "kv"
