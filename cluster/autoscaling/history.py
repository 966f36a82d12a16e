"""What the autoscaler remembers between two evaluations."""

from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from cluster.autoscaling.rates import TokenRates

TREND_WINDOW_S: Final = 300.0
_NUM_SAMPLES: Final = 30
_MIN_SAMPLES: Final = 6
"""Fewer make no trend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """The highest value of the last seconds."""

    values: tuple[tuple[float, int], ...] = ()
    """Times and values, the values falling: what is older and lower can be no peak any more."""

    def added(self, now_s: float, value: int, window_s: float) -> "Peaks":
        """Return it with one value more and without what is too old."""
        oldest_s = now_s - window_s
        kept = [(at_s, old) for at_s, old in self.values if at_s >= oldest_s and old > value]
        return Peaks(values=(*kept, (now_s, value)))

    @property
    def highest(self) -> int:
        """The peak; 0 without values."""
        return self.values[0][1] if self.values else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A straight line through the last minutes."""

    samples: tuple[tuple[float, float], ...] = ()
    """Times and values."""

    def added(self, now_s: float, value: float) -> "Trend":
        """Return it with one value more, unless the last one is new enough."""
        if self.samples and now_s - self.samples[-1][0] < TREND_WINDOW_S / _NUM_SAMPLES:
            return self
        oldest_s = now_s - TREND_WINDOW_S
        kept = [sample for sample in self.samples if sample[0] >= oldest_s]
        return Trend(samples=(*kept, (now_s, value)))

    @property
    def highest(self) -> float:
        """The highest value; 0 without any."""
        return max((value for _, value in self.samples), default=0.0)

    def forecast(self, at_s: float) -> float:
        """Return the line's value then; 0 where too little is known."""
        if len(self.samples) < _MIN_SAMPLES:
            return 0.0
        mean_s = fmean(time_s for time_s, _ in self.samples)
        mean = fmean(value for _, value in self.samples)
        spread = sum((time_s - mean_s) ** 2 for time_s, _ in self.samples)
        slope = sum((time_s - mean_s) * value for time_s, value in self.samples) / spread
        # Rounded, so that what is as many as before does not come out as a hair more.
        return max(0.0, round(mean + slope * (at_s - mean_s), 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingState:
    """Handed into every evaluation and out of it. Can be pickled."""

    began_s: float
    """Nothing is known of the time before."""
    evaluated_s: float
    active_s: float
    """When there was a request last."""
    grown_s: float
    """When a replica began to serve last."""
    removed_s: float | None = None
    late_target: int = 0
    """Replicas that late first tokens made of those there were; 0: they never did."""
    late_load: float = 0.0
    """What was asked for then, in replicas."""
    num_serving: int = 0
    num_above: int = 0
    """Evaluations in a row that wanted more."""
    cold_start_s: float = 0.0
    """As was told last; 0: never."""
    rates: TokenRates = field(default_factory=TokenRates)
    peaks: Peaks = field(default_factory=Peaks)
    trend: Trend = field(default_factory=Trend)

    @classmethod
    def new(cls, now_s: float) -> "ScalingState":
        """What is remembered of nothing."""
        return cls(began_s=now_s, evaluated_s=now_s, active_s=now_s, grown_s=now_s)
