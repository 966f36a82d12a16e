"""Requests that hold no blocks, in the order in which they should get some.

First by priority class, lower values first. Within one, by the time at which a request would have
its first token if it were served at once and alone: arrival plus prefill. So the shorter prompt
goes first, but a long one is passed only by what comes within the time that it takes itself. A
deadline comes before that where it leaves less time.
"""

import bisect
from collections.abc import Iterator
from itertools import islice

from engine.request import Request


class WaitingQueue:
    """An ordered queue. A request's place in it is fixed when it is added."""

    def __init__(self) -> None:
        self._places: list[tuple[int, float, int]] = []
        self._requests: dict[tuple[int, float, int], Request] = {}
        self.num_tokens = 0
        """Tokens of all of them."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Request]:
        return map(self._requests.__getitem__, self._places)

    def first(self, count: int) -> list[Request]:
        """Return the first few, best first."""
        return list(islice(self, count))

    def add(self, request: Request) -> None:
        """Put a request, whose `due_s` is set, in its place."""
        place = request.place
        bisect.insort(self._places, place)
        self._requests[place] = request
        self.num_tokens += request.num_tokens

    def remove(self, request: Request) -> None:
        """Take a request out."""
        place = request.place
        del self._requests[place]
        del self._places[bisect.bisect_left(self._places, place)]
        self.num_tokens -= request.num_tokens
