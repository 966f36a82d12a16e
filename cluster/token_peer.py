"""The clients of a token server and their requests, as its hub knows them."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from cluster.messages import Demand, Role
from cluster.outbox import Outbox
from engine.cache_log import CacheLog


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
    """A request in the engine: who submitted it and who reads it, None once they are gone."""

    request_id: str
    num_live_choices: int
    supervisor: Connection | None
    frontend: Frontend | None
