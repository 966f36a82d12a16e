"""Replicas as placement sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.fleet import FleetView
from cluster.placement import PlacementPolicy, choose
from cluster.request_need import RequestNeed

FIT = (0.010, 0.0001, 0.0002)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A replica that is idle and empty, but for what is given."""

    replica_id: str = "r"
    may_serve: bool = True
    is_late: bool = False
    block_size: int = 16
    num_blocks: int = 1000
    num_available_blocks: int = 1000
    num_active: int = 0
    num_free_seats: int = 256
    num_queued_prefill_tokens: int = 0
    num_own_requests: int = 0
    step_time_s: tuple[float, float, float] = FIT
    num_cached_blocks: int = 0
    num_session_tokens: int = 0


def view(replica_id: str = "r", **fields: Any) -> Row:
    """One row."""
    return Row(replica_id=replica_id, **fields)


def fleet(*rows: Row) -> FleetView:
    """The rows as columns."""

    def column(name: str) -> Any:
        return np.array([float(getattr(row, name)) for row in rows])

    step_times = np.array([row.step_time_s for row in rows]).reshape(len(rows), 3)
    return FleetView(
        replica_ids=[row.replica_id for row in rows],
        may_serve=column("may_serve") > 0,
        is_late=column("is_late") > 0,
        block_size=column("block_size"),
        num_blocks=column("num_blocks"),
        num_available_blocks=column("num_available_blocks"),
        num_active=column("num_active"),
        num_free_seats=column("num_free_seats"),
        num_queued_prefill_tokens=column("num_queued_prefill_tokens"),
        num_own_requests=column("num_own_requests"),
        constant_s=step_times[:, 0],
        seq_s=step_times[:, 1],
        prefill_token_s=step_times[:, 2],
        num_cached_blocks=column("num_cached_blocks"),
        num_session_tokens=column("num_session_tokens"),
    )


def ranking(
    rows: Sequence[Row], need: RequestNeed, rotation: int = 0, policy: PlacementPolicy = choose
) -> list[str]:
    """Whom the policy chooses, then whom without that one, and so on."""
    left, chosen = list(rows), []
    while left and (choice := policy(fleet(*left), need, rotation)) is not None:
        chosen.append(left.pop(choice.row).replica_id)
    return chosen
