"""The clients of a token server and their requests, as its hub knows them."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cluster.messages import Demand, Role
from cluster.outbox import Outbox
from engine.cache_log import CacheLog
from engine.request import GenerateRequest

MAX_ENDED: Final = 4096
"""As many requests of one frontend may end before both who submit them have come."""


class DropReason(StrEnum):
    """Why the hub is through with a client."""

    SLOW = "it does not read its stream."
    REPLACED = "another client of the same name opened a stream."
    GONE = "it did not come back after its stream broke."
    STOPPED = "the engine stops."


@dataclass(slots=True, eq=False)
class Connection:
    """One stream of one client."""

    peer_id: str
    role: Role
    outbox: Outbox
    dropped: "asyncio.Future[DropReason]"
    """Done, with the reason, when the hub is through with this stream."""

    def drop(self, reason: DropReason) -> None:
        """Ask whoever carries the stream to end it."""
        if not self.dropped.done():
            self.dropped.set_result(reason)


@dataclass(slots=True, eq=False)
class Frontend:
    """A receiver of tokens; outlives its connections by the grace period."""

    peer_id: str
    cache: CacheLog
    """What it has not been told of the prefix cache."""
    connection: Connection | None = None
    outbox: Outbox = field(default_factory=Outbox)
    accepted: list[str] = field(default_factory=list)
    last_frame_s: float = 0.0
    expiry: asyncio.TimerHandle | None = None
    demand: Demand = field(default_factory=Demand)
    _ended: dict[str, Role] = field(default_factory=dict)
    """Requests that are over, oldest first, with whose submission of them is still to come."""

    def note_ended(self, request_id: str, awaits: Role) -> None:
        """A request is over before this one has submitted it, who must not start it anew."""
        self._ended[request_id] = awaits
        if len(self._ended) > MAX_ENDED:  # some never come: a stream broke, or a supervisor
            del self._ended[next(iter(self._ended))]

    def forget_ended(self, request_id: str, submitted_by: Role) -> bool:
        """Whether the request is over that this one submits now. It does so once."""
        if self._ended.get(request_id) is not submitted_by:
            return False
        del self._ended[request_id]
        return True


def total_demand(frontends: Iterable[Frontend]) -> Demand:
    """What all of them hold back, and how the worst of them fares."""
    demands = [frontend.demand for frontend in frontends]
    return Demand(
        sum(demand.num_held_requests for demand in demands),
        sum(demand.num_held_tokens for demand in demands),
        min((demand.ttft_attainment for demand in demands), default=1.0),
    )


@dataclass(slots=True, eq=False)
class Route:
    """A request in the engine."""

    request_id: str
    num_live_choices: int
    frontend: Frontend | None
    """Reads it; None once that one or the supervisor is gone, and the request is being aborted."""
    supervisor: Connection | None
    """Hears of its end; None before it has come with the request, and once it is gone."""
    awaits: Role | None
    """Whose submission is still to come."""

    @classmethod
    def begin(cls, request: GenerateRequest, by: Connection, frontend: Frontend) -> "Route":
        """Route of a request that only this client has submitted so far."""
        if by.role is Role.REPLICA:
            return cls(request.request_id, request.num_live_choices, frontend, by, Role.FRONTEND)
        return cls(request.request_id, request.num_live_choices, frontend, None, Role.REPLICA)

    def join(self, by: Connection) -> None:
        """The other one has submitted it, too."""
        self.awaits = None
        if by.role is Role.REPLICA:
            self.supervisor = by
