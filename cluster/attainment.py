"""How many of the requests of the last minute had their first token in time."""

from collections import deque
from collections.abc import Callable
from typing import Final

PERIOD_S: Final = 60.0


class Attainment:
    """A share over the last minute."""

    def __init__(self, objective_s: float, clock: Callable[[], float]) -> None:
        """Count as in time what takes up to `objective_s` seconds."""
        self._objective_s = objective_s
        self._clock = clock
        self._met: deque[tuple[float, bool]] = deque()
        self._num_met = 0

    def add(self, seconds: float) -> None:
        """A request had its first token so long after it came; inf: it was refused."""
        met = seconds <= self._objective_s
        self._met.append((self._clock(), met))
        self._num_met += met
        self._forget()

    @property
    def share(self) -> float:
        """Of those in time; 1 where there was no request."""
        self._forget()
        return self._num_met / len(self._met) if self._met else 1.0

    def _forget(self) -> None:
        oldest_s = self._clock() - PERIOD_S
        while self._met and self._met[0][0] < oldest_s:
            self._num_met -= self._met.popleft()[1]
