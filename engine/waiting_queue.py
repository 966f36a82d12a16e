"""Requests that hold no blocks, in the order in which they should get some.

First by priority class, lower values first. Within one, tenants by turns (engine/fair_share.py).
Of one tenant, by the time at which a request would have its first token if it were served at once
and alone: arrival plus prefill. So the shorter prompt goes first, but a long one is passed only by
what comes within the time that it takes itself. A deadline comes before that where it leaves less
time.
"""

import bisect
from collections.abc import Iterable, Iterator
from itertools import chain

from engine.fair_share import FairShare
from engine.request import Request

Place = tuple[int, float, int]


class WaitingQueue:
    """An ordered queue. A request's place among its tenant's is fixed when it is added."""

    def __init__(self, fair_share: FairShare) -> None:
        self._fair_share = fair_share
        self._places: dict[str, list[Place]] = {}
        self._requests: dict[Place, Request] = {}
        self.num_tokens = 0
        """Tokens of all of them."""

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        places = sorted(chain.from_iterable(self._places.values()))
        return map(self._requests.__getitem__, places)

    def candidates(self, prefilling: Iterable[Request], count: int) -> Iterator[Request]:
        """Yield who may have the next step's prefill, best first: those that have begun with
        theirs, and the first few that wait."""
        count = max(1, count // max(1, len(self._places)))
        queues = {
            tenant: [self._requests[place] for place in places[:count]]
            for tenant, places in self._places.items()
        }
        for request in prefilling:
            queues.setdefault(request.tenant, []).append(request)
        for queue in queues.values():
            queue.sort(key=lambda request: request.place)
        return self._fair_share.order(queues.values())

    def add(self, request: Request) -> None:
        """Put a request, whose `due_s` is set, in its place."""
        place = request.place
        bisect.insort(self._places.setdefault(request.tenant, []), place)
        self._requests[place] = request
        self.num_tokens += request.num_tokens

    def remove(self, request: Request) -> None:
        """Take a request out."""
        place = request.place
        del self._requests[place]
        places = self._places[request.tenant]
        del places[bisect.bisect_left(places, place)]
        if not places:
            del self._places[request.tenant]
        self.num_tokens -= request.num_tokens
