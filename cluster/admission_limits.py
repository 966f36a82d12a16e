"""How much may wait in a frontend, and for how long. Beyond it requests are refused."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Of each frontend and model."""

    max_requests: int = 4096
    max_tokens: int = 1 << 24
    """Prompt tokens of all that wait."""
    max_wait_s: float = 60.0
    """Beside replicas that serve; where there is none it counts from when one does."""
    max_start_s: float = 600.0
    """Longest time that a request may wait for a first replica."""
