"""The requests in an engine: who submitted each, who reads it, and which have ended.

A frontend hands a request to the engine itself, which is quick, and to the replica's supervisor,
which is sure. The first of the two to reach the engine starts it; the other one finds it running,
or ended. Belongs to the token server's event loop.
"""

import asyncio
import logging
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Protocol

from cluster.messages import Abort, Ended, Refused, Role, WireError, encode
from cluster.token_peer import Connection, DropReason, Frontend, Route
from engine.errors import InvalidRequest, PageRayError, ReplicaLost
from engine.output import TokenOutput
from engine.request import GenerateRequest
from engine.snapshot import EngineSnapshot

logger = logging.getLogger(__name__)


class SteppingEngine(Protocol):
    """What the token server asks of the engine loop. No method waits for a step."""

    def add(self, request: GenerateRequest) -> "Future[None]":
        """Queue a request; the future is done once the engine admitted it, or holds the error."""

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """Queue an abort; each choice it ends still brings an output with a finish reason."""

    def snapshot(self) -> EngineSnapshot:
        """Newest snapshot."""


class TokenRoutes:
    """Starts requests, ends them, and tells supervisors what has ended."""

    def __init__(
        self, engine: SteppingEngine, loop: asyncio.AbstractEventLoop, max_unread_bytes: int
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._max_unread_bytes = max_unread_bytes
        self._routes: dict[str, Route] = {}

    def submit(self, connection: Connection, frontend: Frontend, request: GenerateRequest) -> None:
        """Take a request in from the frontend that reads it, or from a supervisor."""
        request_id = request.request_id
        route = self._routes.get(request_id)
        if route is None:
            if frontend.forget_ended(request_id, connection.role):
                self._tell_ended(connection, [request_id])
            else:
                self._start(connection, frontend, request)
        elif route.frontend is None:
            self.refuse(
                connection,
                request_id,
                ReplicaLost(
                    "the engine has lost whoever asked for the request, and is ending it.",
                    "Place the request again.",
                ),
            )
        elif route.frontend is frontend and route.awaits is connection.role:
            route.join(connection)
        else:
            self.refuse(
                connection,
                request_id,
                InvalidRequest(
                    f"request id '{request_id}' is in use.",
                    "Give every request an id of its own.",
                    param="request_id",
                ),
            )

    def abort(self, connection: Connection, message: Abort) -> bool:
        """End a request, or a choice, for one of those it belongs to; False: it does not run."""
        route = self._routes.get(message.request_id)
        if route is None:
            return False
        if route.frontend is None:
            return True  # it is being aborted already
        if connection in (route.supervisor, route.frontend.connection):
            self._engine.abort(message.request_id, message.choice_index)
        else:
            logger.warning("%s may not abort %s", connection.peer_id, message.request_id)
        return True

    def take(
        self, outputs: Iterable[TokenOutput]
    ) -> tuple[dict[Frontend, list[TokenOutput]], list[Route]]:
        """Sort a step's outputs by who reads them; return also the routes that end with them."""
        by_frontend: dict[Frontend, list[TokenOutput]] = {}
        ended: list[Route] = []
        for output in outputs:
            route = self._routes.get(output.request_id)
            if route is None:
                logger.error("an output of %s came after its end", output.request_id)
                continue
            if route.frontend is not None:
                by_frontend.setdefault(route.frontend, []).append(output)
            if output.finish_reason is not None:
                route.num_live_choices -= 1
                if route.num_live_choices == 0:
                    self._remove(route)
                    ended.append(route)
        return by_frontend, ended

    def report_ended(self, routes: list[Route]) -> None:
        """Tell the supervisors, once the last frames are on their way."""
        by_supervisor: dict[Connection, list[str]] = {}
        for route in routes:
            if route.supervisor is not None:
                by_supervisor.setdefault(route.supervisor, []).append(route.request_id)
        for supervisor, request_ids in by_supervisor.items():
            self._tell_ended(supervisor, request_ids)

    def lose_supervisor(self, connection: Connection) -> None:
        """Abort what has a supervisor that is gone."""
        lost = [route for route in self._routes.values() if route.supervisor is connection]
        for route in lost:
            route.supervisor = None
        self._abort_all(lost)

    def lose_frontend(self, frontend: Frontend) -> int:
        """Abort what a frontend that is gone would read; return the number of requests."""
        lost = [route for route in self._routes.values() if route.frontend is frontend]
        self._abort_all(lost)
        return len(lost)

    def refuse(self, connection: Connection, request_id: str, error: BaseException) -> None:
        """Tell a supervisor why its request is not taken. A frontend hears it from there."""
        if connection.role is Role.REPLICA:
            connection.outbox.put(encode(Refused(request_id, WireError.from_error(error))))

    def _start(self, connection: Connection, frontend: Frontend, request: GenerateRequest) -> None:
        route = Route.begin(request, connection, frontend)
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
        if route.supervisor is None:
            route.awaits = None  # the supervisor's own try is still to come, and answered for sure
        self._remove(route)
        if route.supervisor is not None:
            self.refuse(route.supervisor, route.request_id, error)

    def _remove(self, route: Route) -> None:
        del self._routes[route.request_id]
        if route.frontend is not None and route.awaits is not None:
            route.frontend.note_ended(route.request_id, route.awaits)

    def _tell_ended(self, connection: Connection, request_ids: list[str]) -> None:
        if connection.role is Role.REPLICA:
            connection.outbox.put(encode(Ended(request_ids)))
            if connection.outbox.num_bytes > self._max_unread_bytes:
                connection.drop(DropReason.SLOW)

    def _abort_all(self, routes: list[Route]) -> None:
        # The route stays until the engine says that the request is over. Nobody hears of the
        # aborted rest: to the other side the request is lost, and will be placed elsewhere.
        for route in routes:
            route.frontend = None
            self._engine.abort(route.request_id)
