"""Who gets which tokens: the routes between an engine's requests and its clients.

Belongs to the token server's event loop; only `on_step` may be called from elsewhere. Knows
nothing of sockets: every client has an outbox, whoever empties it.
"""

import asyncio
import logging
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Protocol

from cluster.cache_feed import CacheFeed
from cluster.messages import (
    Abort,
    Ack,
    ClientMessage,
    Demand,
    Ended,
    Frame,
    Hello,
    InvalidMessage,
    Refused,
    Role,
    Submit,
    Welcome,
    WireError,
    encode,
)
from cluster.outbox import Outbox
from cluster.token_peer import Connection, DropReason, Frontend, Route, total_demand
from engine.errors import InvalidRequest, PageRayError, ReplicaLost
from engine.output import StepOutput, TokenOutput
from engine.request import GenerateRequest
from engine.snapshot import EngineSnapshot

logger = logging.getLogger(__name__)

SNAPSHOT_PERIOD_S: Final = 0.05
"""While the engine steps for others, a frontend still gets a snapshot this often."""


class SteppingEngine(Protocol):
    """What the hub asks of the engine loop. No method waits for a step."""

    def add(self, request: GenerateRequest) -> "Future[None]":
        """Queue a request; the future is done once the engine admitted it, or holds the error."""

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """Queue an abort; each choice it ends still brings an output with a finish reason."""

    def snapshot(self) -> EngineSnapshot:
        """Newest snapshot."""


@dataclass(frozen=True, slots=True)
class HubLimits:
    """How patient the hub is with its clients."""

    heartbeat_s: float = 0.25
    """A frontend hears from us at least this often."""
    grace_s: float = 5.0
    """A frontend that lost its stream may come back for this long and misses nothing."""
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
        self._routes: dict[str, Route] = {}
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
            lost = [route for route in self._routes.values() if route.supervisor is connection]
            for route in lost:
                route.supervisor = None
            self._abort_all(lost)
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
        match message:
            case Submit() if connection.role is Role.REPLICA:
                self._submit(connection, message)
            case Ack() if connection.role is Role.FRONTEND:
                frontend = self._frontends.get(connection.peer_id)
                if frontend is not None and frontend.connection is connection:
                    self._acknowledge(frontend, message.number)
            case Demand() if connection.role is Role.FRONTEND:
                frontend = self._frontends.get(connection.peer_id)
                if frontend is not None and frontend.connection is connection:
                    frontend.demand = message
            case Abort():
                self._abort(connection, message)
            case _:
                raise InvalidMessage(
                    f"a client of role '{connection.role}' sent {type(message).__name__}.",
                    "Run the same version of PageRay on every node.",
                )

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

    def _submit(self, connection: Connection, message: Submit) -> None:
        request = message.request
        frontend = self._frontends.get(message.frontend_id)
        if frontend is None:
            self._refuse(
                connection,
                request.request_id,
                ReplicaLost(
                    f"the engine has no token stream to frontend '{message.frontend_id}'.",
                    "Place the request again.",
                ),
            )
            return
        if request.request_id in self._routes:
            self._refuse(
                connection,
                request.request_id,
                InvalidRequest(
                    f"request id '{request.request_id}' is in use.",
                    "Give every request an id of its own.",
                    param="request_id",
                ),
            )
            return
        route = Route(request.request_id, request.params.n, connection, frontend)
        self._routes[request.request_id] = route
        # Done on the step thread before the first step with the request is over, so the snapshot
        # of the next frame, which carries the acceptance, covers the request.
        self._engine.add(request).add_done_callback(
            lambda admission: self._loop.call_soon_threadsafe(self._admit, route, admission)
        )

    def _admit(self, route: Route, admission: "Future[None]") -> None:
        error = admission.exception()
        if error is None:
            if route.frontend is not None and route.num_live_choices:
                route.frontend.accepted.append(route.request_id)
            return
        if not isinstance(error, PageRayError):
            logger.error("the engine failed to admit %s", route.request_id, exc_info=error)
        del self._routes[route.request_id]
        if route.supervisor is not None:
            self._refuse(route.supervisor, route.request_id, error)

    def _refuse(self, supervisor: Connection, request_id: str, error: BaseException) -> None:
        supervisor.outbox.put(encode(Refused(request_id, WireError.from_error(error))))

    def _abort(self, connection: Connection, message: Abort) -> None:
        route = self._routes.get(message.request_id)
        if route is None:
            return  # it ended while the message was on its way
        if route.supervisor is None or route.frontend is None:
            return  # it is being aborted already
        if connection not in (route.supervisor, route.frontend.connection):
            logger.warning("%s may not abort %s", connection.peer_id, message.request_id)
            return
        self._engine.abort(message.request_id, message.choice_index)

    def _publish(self, step: StepOutput, snapshot: EngineSnapshot) -> None:
        self._cache.note(step.changes)
        by_frontend: dict[Frontend, list[TokenOutput]] = {}
        ended: list[Route] = []
        for output in step.outputs:
            route = self._routes.get(output.request_id)
            if route is None:
                logger.error("an output of %s came after its end", output.request_id)
                continue
            if route.frontend is not None:
                by_frontend.setdefault(route.frontend, []).append(output)
            if output.finish_reason is not None:
                route.num_live_choices -= 1
                if route.num_live_choices == 0:
                    del self._routes[route.request_id]
                    ended.append(route)
        due = self._loop.time() - SNAPSHOT_PERIOD_S
        for frontend in list(self._frontends.values()):
            if frontend in by_frontend or frontend.accepted:
                self._send_frame(frontend, by_frontend.get(frontend, []), snapshot)
            elif frontend.last_frame_s <= due:
                self._beat(frontend, snapshot)
        self._report_ended(ended)

    def _report_ended(self, routes: list[Route]) -> None:
        by_supervisor: dict[Connection, list[str]] = {}
        for route in routes:
            if route.supervisor is not None:
                by_supervisor.setdefault(route.supervisor, []).append(route.request_id)
        for supervisor, request_ids in by_supervisor.items():
            supervisor.outbox.put(encode(Ended(request_ids)))
            if supervisor.outbox.num_bytes > self._limits.max_unread_bytes:
                supervisor.drop(DropReason.SLOW)

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
        lost = [route for route in self._routes.values() if route.frontend is frontend]
        level = logging.WARNING if lost else logging.INFO
        logger.log(level, "%s dropped: %s %d requests aborted", frontend.peer_id, reason, len(lost))
        self._abort_all(lost)

    def _abort_all(self, routes: list[Route]) -> None:
        # The route stays until the engine says that the request is over. Nobody hears of the
        # aborted rest: to the other side the request is lost, and will be placed elsewhere.
        for route in routes:
            route.frontend = None
            self._engine.abort(route.request_id)
