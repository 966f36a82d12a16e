"""Simulated time: what is to happen, in order."""

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator

_Entry = tuple[float, Callable[[], None]]
"""When something is to happen, and what."""


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
        """Let something happen so many seconds from now, 0 or more."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), action))

    def follow(self, schedule: Iterable[_Entry]) -> None:
        """Let all of a schedule happen, which is in order of time, as if each were asked for now.

        One of it waits at a time: a million at once would make every other event dearer.
        """
        self._push_first(iter(schedule), next(self._order))

    def run(self) -> None:
        """Let all happen, and all that comes of it."""
        while self._heap:
            self.now, _, action = heapq.heappop(self._heap)
            action()

    def _push_first(self, left: Iterator[_Entry], order: int) -> None:
        entry = next(left, None)
        if entry is None:
            return
        time_s, action = entry

        def happen() -> None:
            self._push_first(left, order)
            action()

        heapq.heappush(self._heap, (max(time_s, self.now), order, happen))
