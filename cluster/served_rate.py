"""How much is served in a second, from what has ended of late."""

import math
from collections.abc import Callable
from typing import Final

_PERIOD_S: Final = 30.0


class ServedRate:
    """An average in which what is one period old counts a third of what is new."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_s = self._noted_s = clock()
        self._sum = 0.0

    def add(self, amount: float) -> None:
        """Note what has been served just now."""
        self._decay()
        self._sum += amount

    @property
    def per_s(self) -> float:
        """The rate; 0 when nothing has ended yet."""
        self._decay()
        # In the first period there is less to average over.
        age = (self._noted_s - self._started_s) / _PERIOD_S
        weight = -math.expm1(-age) * _PERIOD_S
        return self._sum / weight if weight > 0 else 0.0

    def _decay(self) -> None:
        now = self._clock()
        self._sum *= math.exp((self._noted_s - now) / _PERIOD_S)
        self._noted_s = now
