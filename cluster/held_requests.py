"""Requests of a frontend that wait for their replica: the admission queue on an event loop."""

import asyncio
from typing import Final

from cluster.admission_queue import LOOK_S, AdmissionQueue, Ticket
from engine.errors import DeadlinePassed, PageRayError

_MAX_LOOK_S: Final = 0.1
"""The queue is looked through at least so often: deadlines pass without any news."""


class HeldRequests:
    """Lets each request go on when the queue has placed it. Lives on one event loop."""

    def __init__(self, queue: AdmissionQueue) -> None:
        self._queue = queue
        self._placed: dict[str, asyncio.Future[str]] = {}
        self._next_look: asyncio.TimerHandle | None = None

    async def place(self, ticket: Ticket) -> str:
        """Return the ticket's replica, once one has room. Call `end` afterwards in any case.

        Raises Overloaded when it waits in vain or too much waits already, DeadlinePassed.
        """
        replica_id = self._queue.enter(ticket)
        if replica_id is not None:
            return replica_id
        placed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        request_id = ticket.need.request_id
        self._placed[request_id] = placed
        self._look_within(_MAX_LOOK_S)
        try:
            return await placed
        finally:
            del self._placed[request_id]

    def end(self, request_id: str, num_output_tokens: int) -> None:
        """A request is over, whether it waited or ran; others may have its place."""
        self._queue.end(request_id, num_output_tokens)
        self.wake()

    def wake(self) -> None:
        """Look soon whether anybody has room by now."""
        if len(self._queue):
            self._look_within(LOOK_S)

    def _look_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._next_look is not None:
            if self._next_look.when() <= loop.time() + seconds:
                return
            self._next_look.cancel()
        self._next_look = loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._next_look = None
        for ticket, replica_id in self._queue.place_next():
            placed = self._placed[ticket.need.request_id]
            if not placed.done():  # else its client has left this moment, and will end it
                placed.set_result(replica_id)
        for ticket in self._queue.give_up():
            placed = self._placed[ticket.need.request_id]
            if not placed.done():
                placed.set_exception(self._refusal(ticket))
        if len(self._queue):
            self._look_within(_MAX_LOOK_S)

    def _refusal(self, ticket: Ticket) -> PageRayError:
        now = asyncio.get_running_loop().time()
        if ticket.deadline_s <= now:
            return DeadlinePassed(
                "The request's deadline has passed before a replica had room for it.",
                "Allow more time, or serve with more replicas.",
            )
        return self._queue.overloaded(f"no replica had room within {now - ticket.entered_s:.0f} s.")
