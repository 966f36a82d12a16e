"""Whose turn it is among tenants: that of whoever has had least of the service for its weight.

Virtual token counters (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024): a
tenant's counter rises by what it is served, over its weight; the least counter goes next. In the
paper one that comes back begins where the least of the others is. Here it may be behind by so much
as a few long prompts: who asks for less than its share now and then would else wait for half of
what a flood has sent.
"""

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

OUTPUT_COST: Final = 2.0
"""A generated token counts as so many of a prompt, as in the paper."""
CLAIM: Final = 131_072.0
"""Tokens, over its weight, that a tenant may have left unused and be served before others: the
longest prompt of most models."""
_MAX_ABSENT: Final = 10_000
"""Counters of tenants who have nothing here are kept up to so many."""


class Entry(Protocol):
    """What waits for its turn."""

    tenant: str
    weight: float
    """Share that its tenant gets beside others."""

    @property
    def place(self) -> tuple[int, float, int]:
        """Priority class, then its place among its tenant's; lower goes first."""

    @property
    def num_missing_tokens(self) -> int:
        """What serving it takes, as far as is known."""


EntryType = TypeVar("EntryType", bound=Entry)


class FairShare:
    """The counters. A tenant is present from its first `enter` to its last `leave`."""

    def __init__(self, claim: float = CLAIM) -> None:
        self._claim = claim
        self._served: dict[str, float] = {}
        self._num_present: dict[str, int] = {}
        self._floor = 0.0

    @property
    def num_present(self) -> int:
        """Tenants who have something here."""
        return len(self._num_present)

    def enter(self, tenant: str) -> None:
        """A tenant has one entry more."""
        num = self._num_present.get(tenant, 0)
        if not num:
            self._raise_floor()
            self._served[tenant] = max(self._served.get(tenant, 0.0), self._floor - self._claim)
        self._num_present[tenant] = num + 1

    def leave(self, tenant: str) -> None:
        """A tenant has one entry less."""
        self._num_present[tenant] -= 1
        if not self._num_present[tenant]:
            self._raise_floor()
            del self._num_present[tenant]
            if len(self._served) > len(self._num_present) + _MAX_ABSENT:
                self._served = {name: self._served[name] for name in self._num_present}

    def is_behind(self, tenant: str, others: Iterable[str]) -> bool:
        """Whether the tenant has been served no more than any of the others, who may be absent."""
        served = self._served.get(tenant, 0.0)
        return all(served <= self._served.get(other, 0.0) for other in others)

    def num_ahead(self, tenant: str, entries: Collection[Entry]) -> int:
        """Return how many entries are of tenants who have been served more than this one."""
        if self.num_present == 1:
            return 0
        served = self._served[tenant]
        return sum(self._served[entry.tenant] > served for entry in entries)

    def charge(self, entry: Entry, num_tokens: float) -> None:
        """Count what an entry's tenant was served; below 0: it was charged too much."""
        self._served[entry.tenant] += num_tokens / entry.weight

    def order(self, queues: Iterable[Sequence[EntryType]]) -> Iterator[EntryType]:
        """Yield entries in the order of their turns, each as if those before it were served.

        Args:
            queues: one for each tenant, none of them empty, in the order of places.
        """
        heads = [
            (queue[0].place[0], self._served[queue[0].tenant], queue[0].place, 0, queue)
            for queue in queues
        ]
        heapq.heapify(heads)
        while heads:
            _, served, _, i, queue = heads[0]
            entry = queue[i]
            yield entry
            if i + 1 == len(queue):
                heapq.heappop(heads)
            else:
                served += entry.num_missing_tokens / entry.weight
                place = queue[i + 1].place
                heapq.heapreplace(heads, (place[0], served, place, i + 1, queue))

    def _raise_floor(self) -> None:
        # Never back: whoever came after one with a claim would be before that one.
        if self._num_present:
            least = min(self._served[tenant] for tenant in self._num_present)
            self._floor = max(self._floor, least)
