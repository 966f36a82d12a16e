"""What a replica tells the others about its engine once it is up."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """Facts that do not change while the engine lives. Travels through Ray and Serve as a dict."""

    address: str
    """host:port of rank 0's token server."""
    token: str
    """Secret a client of the token server shows in its handshake."""
    model_name: str
    max_model_len: int
    tensor_parallel_size: int
    device: str
    dtype: str
    memory_plan: str
    """Readable, several lines."""
    phase_times_s: dict[str, float] = field(default_factory=dict)
    """Start-up phases in order and how long each took."""
    process_ids: list[int] = field(default_factory=list)
    """Process id of every rank."""
