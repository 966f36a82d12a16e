"""Tokens per second that a deployment is asked for, from counters of its replicas."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cluster.autoscaling.demand import ScalingInput

PERIODS_S: Final = (10.0, 60.0)
"""A rise shows in the short average at once; the long one remembers it through a lull."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRates:
    """Averages over both periods, and the counters they go on from."""

    prefill: tuple[float, float] = (0.0, 0.0)
    """Prompt tokens per second that no cache had, those that frontends hold included: what is
    served only rises to what there is."""
    decode: tuple[float, float] = (0.0, 0.0)
    """Output tokens per second."""
    counters: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Prompt and output tokens of each replica so far."""
    num_held_tokens: float | None = None
    """None: there was no replica to tell."""
    began_s: float = 0.0
    counted_s: float | None = None
    has_risen: bool = False
    """Whether any counter has, since the evaluation before."""

    @property
    def prefill_per_s(self) -> float:
        """Prompt tokens per second to be ready for."""
        return self._highest(self.prefill)

    @property
    def decode_per_s(self) -> float:
        """Output tokens per second to be ready for."""
        return self._highest(self.decode)

    def advanced(self, given: ScalingInput) -> "TokenRates":
        """Return the averages with what the counters have risen by since."""
        now_s, num_held_tokens = given.now_s, given.num_held_tokens if given.known else None
        counters = {
            replica_id: (one.num_prefilled_tokens, one.num_generated_tokens)
            for replica_id, one in given.replicas.items()
        }
        if self.counted_s is None:
            return TokenRates(
                counters=counters,
                num_held_tokens=num_held_tokens,
                began_s=now_s,
                counted_s=now_s,
            )
        if now_s == self.counted_s:
            return self
        elapsed_s = now_s - self.counted_s
        # A replica that is seen for the first time has counted for nobody knows how long.
        risen = [
            [max(0.0, new - old) for new, old in zip(counters[key], before, strict=True)]
            for key, before in self.counters.items()
            if key in counters
        ]
        prefill, decode = (sum(rises[i] for rises in risen) for i in range(2))
        if num_held_tokens is not None and self.num_held_tokens is not None:
            prefill += num_held_tokens - self.num_held_tokens
        return TokenRates(
            prefill=_blend(self.prefill, prefill / elapsed_s, elapsed_s),
            decode=_blend(self.decode, decode / elapsed_s, elapsed_s),
            counters=counters,
            num_held_tokens=num_held_tokens,
            began_s=self.began_s,
            counted_s=now_s,
            has_risen=any(rise > 0 for rises in risen for rise in rises),
        )

    def _highest(self, averages: tuple[float, float]) -> float:
        """The higher average, each over no more than the time that there was."""
        age_s = 0.0 if self.counted_s is None else self.counted_s - self.began_s
        if not age_s:
            return 0.0
        weights = (-math.expm1(-age_s / period_s) for period_s in PERIODS_S)
        corrected = [average / weight for average, weight in zip(averages, weights, strict=True)]
        return max(0.0, *corrected)


def _blend(averages: tuple[float, float], rate: float, elapsed_s: float) -> tuple[float, float]:
    fast, slow = (
        average - math.expm1(-elapsed_s / period_s) * (rate - average)
        for average, period_s in zip(averages, PERIODS_S, strict=True)
    )
    return fast, slow
