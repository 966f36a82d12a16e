"""What router, autoscaler, metrics and status page know of one replica."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.snapshot import EngineSnapshot


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    """The newest engine snapshot of one replica, and how old it is."""

    replica_id: str
    engine: EngineSnapshot
    age_s: float
    """Seconds since it arrived; the token stream brings one with every step and heartbeat."""
    connected: bool = True
    """Whether the token stream to the engine is up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSnapshot:
    """What a frontend holds back, and what it has placed since it started."""

    num_held_requests: int = 0
    num_held_tokens: int = 0
    """Of their prompts."""
    predicted_wait_s: float | None = 0.0
    """Of a request that came now; None: too little is known."""
    num_placed_requests: int = 0
    """On replicas at present."""
    num_placements: Mapping[str, int]
    """By the reason of the choice, see cluster/placement.py."""
    num_refused: int = 0
    num_moved: int = 0
    """Requests that went to another replica before anything had come of them, each time."""
    num_resumed: int = 0
    """Those that did so later, and went on where they had been."""
    num_quarantined: int = 0
