"""What router, autoscaler, metrics and status page know of one replica."""

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
