"""One try at a request, on the replica that it was placed on or wherever Serve has led it since."""

import asyncio

from cluster.request_times import AttemptTimes
from deployments.replica_call import lost
from engine.errors import PageRayError
from engine.output import TokenOutput


class Attempt:
    """What has come of it so far. Two replicas may have it for a moment; one of them counts."""

    def __init__(self, attempt_id: str, number: int = 0) -> None:
        self.id = attempt_id
        self.times = AttemptTimes()
        self.number = number
        """Those before it have lost their replicas, or were refused."""
        self.events: asyncio.Queue[TokenOutput | PageRayError] = asyncio.Queue()
        """What its request has to see, in order."""
        self.placed_on: str | None = None
        """Where admission placed it."""
        self.accepted_by: str | None = None
        """Whose tokens count; None before anybody took it."""
        self._has_outputs = False

    @property
    def replica_id(self) -> str | None:
        """Where it runs, as far as is known."""
        return self.accepted_by or self.placed_on

    def place(self, replica_id: str | None) -> None:
        """Admission has placed it."""
        self.placed_on = replica_id
        self.times.place(replica_id)

    def uses(self, replica_id: str) -> bool:
        """Whether it runs there, or is on its way."""
        return replica_id in (self.placed_on, self.accepted_by)

    def accept(self, replica_id: str) -> str | None:
        """A replica has taken it in; return the replica that now works on it in vain, if any.

        Only Serve brings an attempt elsewhere than where it was placed, because that one leaves.
        It goes there, where its call keeps the replica alive, unless its tokens come already.
        """
        if self.accepted_by is None or replica_id == self.accepted_by:
            self.accepted_by = replica_id
            return None
        if replica_id == self.placed_on or self._has_outputs:
            return replica_id
        left, self.accepted_by = self.accepted_by, replica_id
        return left

    def take(self, replica_id: str, output: TokenOutput) -> None:
        """Add an output, unless it comes from a replica that does not count."""
        if self.accepted_by is None:
            self.accepted_by = replica_id  # a request may end before its acceptance is told
        if replica_id == self.accepted_by:
            self._has_outputs = True
            self.times.take(output)
            self.events.put_nowait(output)

    def give_up_unplaced(self, timeout_s: float) -> None:
        """Let it end with an error if nobody has taken it so far."""
        if self.accepted_by is None:
            self.fail(lost(f"it did not take the request within {timeout_s:g} s"))

    def fail(self, error: PageRayError) -> None:
        """Let it end with an error."""
        self.events.put_nowait(error)
