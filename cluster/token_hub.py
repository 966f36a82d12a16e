"""Who gets which tokens: the clients of an engine, and what each is sent.

Belongs to the token server's event loop; only `on_step` may be called from elsewhere. Knows
nothing of sockets: every client has an outbox, whoever empties it.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from cluster.cache_feed import CacheFeed
from cluster.messages import (
    Abort,
    Ack,
    ClientMessage,
    Demand,
    Frame,
    Hello,
    InvalidMessage,
    Role,
    Submit,
    Welcome,
    encode,
)
from cluster.outbox import Outbox
from cluster.token_peer import Connection, DropReason, Frontend, total_demand
from cluster.token_routes import SteppingEngine, TokenRoutes
from engine.errors import ReplicaLost
from engine.output import StepOutput, TokenOutput
from engine.snapshot import EngineSnapshot

logger = logging.getLogger(__name__)

SNAPSHOT_PERIOD_S: Final = 0.05
"""While the engine steps for others, a frontend still gets a snapshot this often."""


@dataclass(frozen=True, slots=True)
class HubLimits:
    """How patient the hub is with its clients."""

    heartbeat_s: float = 0.25
    """A frontend hears from us at least this often."""
    grace_s: float = 1.5
    """A frontend that lost its stream may come back for this long and misses nothing. It gives up
    a little sooner (cluster/token_client.py)."""
    max_unread_bytes: int = 32 * 2**20
    """A client that has more than this to read is dropped."""


class TokenHub:
    """Splits each step's outputs by frontend and tells supervisors what has ended."""

    def __init__(
        self, engine: SteppingEngine, loop: asyncio.AbstractEventLoop, limits: HubLimits
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._limits = limits
        self._epoch = engine.snapshot().epoch
        self._frontends: dict[str, Frontend] = {}
        self._routes = TokenRoutes(engine, loop, limits.max_unread_bytes)
        self._cache = CacheFeed()

    def on_step(self, output: StepOutput, snapshot: EngineSnapshot) -> None:
        """Take over a step's outputs; called on the step thread, which must not be held up."""
        self._loop.call_soon_threadsafe(self._publish, output, snapshot)

    def connect(self, hello: Hello) -> tuple[Connection, Welcome]:
        """Enter a client that has shown the right token."""
        dropped: asyncio.Future[DropReason] = self._loop.create_future()
        if hello.role is Role.REPLICA:
            connection = Connection(hello.peer_id, hello.role, Outbox(), dropped)
            return connection, Welcome(self._epoch, resumed=False)
        frontend = self._frontends.get(hello.peer_id)
        resumed = frontend is not None and hello.epoch == self._epoch
        if frontend is None or not resumed:
            if frontend is not None:
                self._forget(frontend, DropReason.REPLACED)
            frontend = Frontend(hello.peer_id, self._cache.open())
            self._frontends[hello.peer_id] = frontend
        else:
            self._acknowledge(frontend, hello.last_frame)
            frontend.outbox = frontend.outbox.rewound()
        self._detach(frontend, DropReason.REPLACED)
        connection = Connection(hello.peer_id, hello.role, frontend.outbox, dropped)
        frontend.connection = connection
        self._beat(frontend, self._engine.snapshot())
        return connection, Welcome(self._epoch, resumed=resumed)

    def disconnect(self, connection: Connection) -> None:
        """Note that a stream is gone; what its client had running ends with it, or soon after."""
        if connection.role is Role.REPLICA:
            self._routes.lose_supervisor(connection)
            return
        frontend = self._frontends.get(connection.peer_id)
        if frontend is None or frontend.connection is not connection:
            return
        frontend.connection = None
        frontend.expiry = self._loop.call_later(
            self._limits.grace_s, self._forget, frontend, DropReason.GONE
        )

    def receive(self, connection: Connection, message: ClientMessage) -> None:
        """Act on a client's message. Raises InvalidMessage when it has no right to it."""
        if connection.role is Role.REPLICA:
            self._receive_from_supervisor(connection, message)
        else:
            self._receive_from_frontend(connection, message)

    def demand(self) -> Demand:
        """What the frontends hold back; may be called from any thread."""
        return total_demand(list(self._frontends.values()))

    def beat(self) -> None:
        """Send a heartbeat to every frontend that has heard nothing for a while."""
        snapshot = self._engine.snapshot()
        due = self._loop.time() - self._limits.heartbeat_s
        for frontend in list(self._frontends.values()):
            if frontend.last_frame_s <= due:
                self._beat(frontend, snapshot)

    def _receive_from_supervisor(self, connection: Connection, message: ClientMessage) -> None:
        match message:
            case Submit():
                frontend = self._frontends.get(message.frontend_id)
                if frontend is not None:
                    self._routes.submit(connection, frontend, message.request)
                    return
                error = ReplicaLost(
                    f"the engine has no token stream to frontend '{message.frontend_id}'.",
                    "Place the request again.",
                )
                self._routes.refuse(connection, message.request.request_id, error)
            case Abort():
                self._routes.abort(connection, message)
            case _:
                raise _not_allowed(connection, message)

    def _receive_from_frontend(self, connection: Connection, message: ClientMessage) -> None:
        frontend = self._frontends.get(connection.peer_id)
        if frontend is None or frontend.connection is not connection:
            return  # it has a newer stream: what still comes over this one is void
        match message:
            case Submit() if message.frontend_id == frontend.peer_id:
                self._routes.submit(connection, frontend, message.request)
            case Abort():
                is_known = self._routes.abort(connection, message)
                if not is_known and message.choice_index is None:
                    # A supervisor that may yet come with it must not start it any more.
                    frontend.note_ended(message.request_id, Role.REPLICA)
            case Ack():
                self._acknowledge(frontend, message.number)
            case Demand():
                frontend.demand = message
            case _:
                raise _not_allowed(connection, message)

    def _publish(self, step: StepOutput, snapshot: EngineSnapshot) -> None:
        self._cache.note(step.changes)
        by_frontend, ended = self._routes.take(step.outputs)
        due = self._loop.time() - SNAPSHOT_PERIOD_S
        for frontend in list(self._frontends.values()):
            if frontend in by_frontend or frontend.accepted:
                self._send_frame(frontend, by_frontend.get(frontend, []), snapshot)
            elif frontend.last_frame_s <= due:
                self._beat(frontend, snapshot)
        self._routes.report_ended(ended)

    def _send_frame(
        self, frontend: Frontend, outputs: list[TokenOutput], snapshot: EngineSnapshot
    ) -> None:
        outbox = frontend.outbox
        changes = frontend.cache.take()
        frame = Frame(outbox.last_number + 1, outputs, snapshot, frontend.accepted, changes)
        outbox.put(encode(frame))
        frontend.accepted = []
        frontend.last_frame_s = self._loop.time()
        if outbox.num_bytes > self._limits.max_unread_bytes:
            self._forget(frontend, DropReason.SLOW)

    def _beat(self, frontend: Frontend, snapshot: EngineSnapshot) -> None:
        # While it is away, changes of the cache are kept as one.
        if frontend.connection is not None and frontend.cache:
            self._send_frame(frontend, [], snapshot)
        elif frontend.connection is not None:
            number = frontend.outbox.last_number
            frontend.outbox.put_heartbeat(encode(Frame(number, [], snapshot, [])))
            frontend.last_frame_s = self._loop.time()

    def _acknowledge(self, frontend: Frontend, number: int) -> None:
        if number > frontend.outbox.last_sent:
            raise InvalidMessage(
                f"'{frontend.peer_id}' says it has frame {number}, which was never sent.",
                "Run the same version of PageRay on every node.",
            )
        frontend.outbox.acknowledge(number)

    def _detach(self, frontend: Frontend, reason: DropReason) -> None:
        if frontend.expiry is not None:
            frontend.expiry.cancel()
            frontend.expiry = None
        if frontend.connection is not None:
            frontend.connection.drop(reason)
            frontend.connection = None

    def _forget(self, frontend: Frontend, reason: DropReason) -> None:
        self._detach(frontend, reason)
        del self._frontends[frontend.peer_id]
        self._cache.close(frontend.cache)
        num_lost = self._routes.lose_frontend(frontend)
        level = logging.WARNING if num_lost else logging.INFO
        logger.log(level, "%s dropped: %s %d requests aborted", frontend.peer_id, reason, num_lost)


def _not_allowed(connection: Connection, message: ClientMessage) -> InvalidMessage:
    return InvalidMessage(
        f"a client of role '{connection.role}' sent {type(message).__name__}.",
        "Run the same version of PageRay on every node.",
    )
