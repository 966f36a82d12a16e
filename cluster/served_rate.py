"""How much is served in a second, from what ended while others waited."""

import math
from collections.abc import Callable
from typing import Final

_PERIOD_S: Final = 30.0
_MIN_AGE_S: Final = 5.0
_MIN_ENDED: Final = 8
"""With less behind it than these two the rate is chance."""


class ServedRate:
    """An average over the time in which somebody waits: what is served in a quiet hour says
    nothing of what could be. What is one period old counts a third of what is new."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_s: float | None = None
        """When the present spell of waiting began, or what of it was last taken in."""
        self._age_s = 0.0
        self._sum = 0.0
        self._num_ended = 0

    def start(self) -> None:
        """Somebody waits from now on."""
        self._started_s = self._clock()

    def stop(self) -> None:
        """Nobody waits any more."""
        self._pass()
        self._started_s = None

    def forget(self) -> None:
        """Who served is gone, and says nothing of who comes."""
        if self._started_s is not None:
            self._started_s = self._clock()
        self._age_s = self._sum = 0.0
        self._num_ended = 0

    def add(self, amount: float) -> None:
        """Note what has been served just now."""
        if self._started_s is not None:
            self._pass()
            self._sum += amount
            self._num_ended += 1

    @property
    def per_s(self) -> float | None:
        """The rate; None: too little is known."""
        self._pass()
        if self._age_s < _MIN_AGE_S or self._num_ended < _MIN_ENDED:
            return None
        # In the first period there is less to average over.
        return self._sum / (-math.expm1(-self._age_s / _PERIOD_S) * _PERIOD_S)

    def _pass(self) -> None:
        if self._started_s is not None:
            now = self._clock()
            elapsed_s = now - self._started_s
            self._started_s = now
            self._age_s += elapsed_s
            self._sum *= math.exp(-elapsed_s / _PERIOD_S)
