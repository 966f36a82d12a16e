"""What is wrong with the replicas, in words."""

from collections.abc import Sequence
from typing import Final

from cluster.snapshot import ReplicaSnapshot
from engine.snapshot import EngineState

MAX_STEP_AGE_S: Final = 4.0
MAX_SILENCE_S: Final = 3.0


def problems(snapshots: Sequence[ReplicaSnapshot], *, may_sleep: bool = False) -> list[str]:
    """One sentence for each thing that is wrong; empty when all is well.

    `may_sleep`: it is well that there is no replica while nobody asks for anything.
    """
    if may_sleep and not snapshots:
        return []
    found = [problem for snapshot in snapshots if (problem := _problem(snapshot)) is not None]
    if not any(is_serving(snapshot) for snapshot in snapshots):
        found.append("No replica is serving.")
    return found


def is_serving(snapshot: ReplicaSnapshot) -> bool:
    """Whether the replica takes requests and works on them."""
    return snapshot.engine.state is EngineState.SERVING and _problem(snapshot) is None


def _problem(snapshot: ReplicaSnapshot) -> str | None:
    """The one thing that explains the others."""
    name = f"Replica {snapshot.replica_id}"
    if not snapshot.connected:
        return f"{name} is not connected."
    if snapshot.age_s > MAX_SILENCE_S:
        return f"{name} has not been heard of for {snapshot.age_s:.1f} s."
    if snapshot.engine.step_age_s > MAX_STEP_AGE_S:
        age_s = snapshot.engine.step_age_s
        return f"{name} has work but made no step for {age_s:.1f} s."
    return None
