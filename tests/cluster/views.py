"""Replicas as placement sees them."""

from typing import Any

from cluster.placement import PlacementView

FIT = (0.010, 0.0001, 0.0002)


def view(replica_id: str = "r", **fields: Any) -> PlacementView:
    """One that is idle and empty, but for what is given."""
    plain = PlacementView(
        replica_id=replica_id,
        is_serving=True,
        age_s=0.0,
        block_size=16,
        num_blocks=1000,
        num_available_blocks=1000,
        num_active=0,
        num_queued_prefill_tokens=0,
        num_own_requests=0,
        step_time_s=FIT,
    )
    return plain._replace(**fields)
