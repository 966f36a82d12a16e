"""Simulated time: what is to happen, in order."""

import heapq
import itertools
from collections.abc import Callable


class Events:
    """A clock that jumps from one event to the next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def clock(self) -> float:
        """Return the simulated seconds since the start."""
        return self.now

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Let something happen then; at the same time, what was asked for first comes first."""
        heapq.heappush(self._heap, (max(time_s, self.now), next(self._order), action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Let something happen so many seconds from now."""
        self.at(self.now + delay_s, action)

    def run(self) -> None:
        """Let all happen, and all that comes of it."""
        while self._heap:
            self.now, _, action = heapq.heappop(self._heap)
            action()
