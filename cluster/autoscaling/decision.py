"""What the autoscaler decided, and why."""

from dataclasses import dataclass
from enum import StrEnum

from cluster.autoscaling.load import Load


class Reason(StrEnum):
    """The one rule that made the decision; the word stands in the log."""

    DEMAND = "demand"
    """More was wanted twice in a row."""
    PANIC = "panic"
    """Much more was wanted."""
    LATE_TOKENS = "late first tokens"
    """Too many first tokens came late, or did with fewer replicas at such a load."""
    WAKE = "wake"
    """A request came while there was no replica."""
    REMOVAL = "removal"
    """One less has been enough for long."""
    IDLE = "idle"
    """Nobody has asked for anything for long."""
    BOUNDS = "bounds"
    """The fewest or most replicas that there may be have changed."""

    STEADY = "steady"
    """As many as are wanted."""
    AT_MOST = "at most"
    """More are wanted than there may be."""
    UNCONFIRMED = "unconfirmed"
    """More are wanted for the first time."""
    ASLEEP = "asleep"
    """There is no replica and no request."""
    RECENT_PEAK = "recent peak"
    """Fewer would do now, but did not a while ago."""
    YOUNG = "young"
    """Fewer would do, but for how long is not known yet."""
    DEAD_BAND = "dead band"
    """So few less would do that it is not worth it."""
    RECENT_REMOVAL = "recent removal"
    """One has just gone."""
    KV = "kv"
    """Fewer could hold what there is only with too little left."""
    FORECAST = "forecast"
    """Fewer would not do any more by the time that a new one could serve."""
    UNREPORTED = "unreported"
    """A replica that serves has not told what it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingDecision:
    """How many replicas there are to be, and every number that led there."""

    num_before: int
    num_target: int
    reason: Reason
    num_wanted: int
    """By this evaluation alone."""
    peak: int
    """Highest wanted number of the last minutes."""
    forecast: float
    """Replicas that will be asked for when one ordered now could serve; 0: not known."""
    load: Load
    num_serving: int
    num_starting: int
    num_held_requests: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    ttft_attainment: float
    cold_start_s: float
    idle_s: float
    """Since there was a request last."""

    @property
    def changes(self) -> bool:
        """Whether replicas come or go."""
        return self.num_target != self.num_before

    def __str__(self) -> str:
        load = self.load
        return (
            f"replicas {self.num_before} -> {self.num_target} ({self.reason}): "
            f"wanted {self.num_wanted}, peak {self.peak}, "
            f"forecast {self.forecast:.2f}; prefill {load.prefill:.2f}, decode {load.decode:.2f}, "
            f"kv {load.kv:.2f}, seats {load.seats:.2f}; serving {self.num_serving}, "
            f"starting {self.num_starting}, held {self.num_held_requests:g}, "
            f"{self.prefill_tokens_per_s:.0f} prompt and {self.decode_tokens_per_s:.0f} output "
            f"tokens/s, first tokens in time {self.ttft_attainment:.0%}, "
            f"idle {self.idle_s:.0f} s, cold start {self.cold_start_s:.0f} s"
        )
