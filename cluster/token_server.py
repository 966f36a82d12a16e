"""The token server: carries a hub's messages over gRPC.

Runs on an event loop of its own thread in rank 0's process, apart from the step thread. Knows
nothing of requests or tokens; `cluster.token_hub` does.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import grpc
import grpc.aio

from cluster.messages import (
    MAX_MESSAGE_BYTES,
    Demand,
    Hello,
    InvalidMessage,
    Role,
    decode_client_message,
    encode,
)
from cluster.token_hub import HubLimits, TokenHub
from cluster.token_peer import Connection, DropReason
from cluster.token_routes import SteppingEngine
from engine.output import StepOutput
from engine.snapshot import EngineSnapshot

logger = logging.getLogger(__name__)

SERVICE: Final = "pageray.Tokens"
METHOD: Final = "Stream"
HELLO_TIMEOUT_S: Final = 5.0
STOP_GRACE_S: Final = 1.0

SERVER_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    # A host that vanished without a word is noticed within three seconds, so that with the grace
    # period what it had running ends within five. gRPC calls peers that ping this often abusive
    # unless told otherwise.
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
)

_DROP_CODES: Final = {
    DropReason.SLOW: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DropReason.REPLACED: grpc.StatusCode.ALREADY_EXISTS,
    DropReason.GONE: grpc.StatusCode.UNAVAILABLE,
    DropReason.STOPPED: grpc.StatusCode.UNAVAILABLE,
}

Problem = tuple[grpc.StatusCode, str]


class TokenServer:
    """Serves one engine's tokens to the clients that show its token."""

    def __init__(
        self,
        engine: SteppingEngine,
        *,
        token: str,
        host: str,
        limits: HubLimits | None = None,
        on_orphaned: Callable[[], None] | None = None,
    ) -> None:
        """Take what belongs to the engine.

        Args:
            engine: the one to serve.
            token: what clients have to show.
            host: to listen on.
            limits: how patient to be.
            on_orphaned: called when the supervisor is gone, and nobody watches the group any more.
        """
        self._engine = engine
        self._token = token.encode()
        self._host = host
        self._limits = limits or HubLimits()
        self._on_orphaned = on_orphaned
        self._connections: set[Connection] = set()

    async def start(self) -> str:
        """Listen on a port that the system chooses; return host:port."""
        self._hub = TokenHub(self._engine, asyncio.get_running_loop(), self._limits)
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        stream: grpc.RpcMethodHandler[bytes, bytes]
        stream = grpc.stream_stream_rpc_method_handler(self._serve)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: stream}),)
        )
        host = f"[{self._host}]" if ":" in self._host else self._host
        port = self._server.add_insecure_port(f"{host}:0")
        await self._server.start()
        self._heart = asyncio.create_task(self._beat())
        return f"{host}:{port}"

    async def stop(self) -> None:
        """End every stream and close the port. The engine must make no more steps by then."""
        self._heart.cancel()
        with suppress(asyncio.CancelledError):
            await self._heart
        for connection in self._connections:
            connection.drop(DropReason.STOPPED)
        await self._server.stop(STOP_GRACE_S)

    def on_step(self, output: StepOutput, snapshot: EngineSnapshot) -> None:
        """Send a step's outputs on their way; called on the step thread, returns at once."""
        self._hub.on_step(output, snapshot)

    def demand(self) -> Demand:
        """What the frontends hold back; may be called from any thread."""
        return self._hub.demand()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._limits.heartbeat_s)
            self._hub.beat()

    async def _serve(self, _requests: AsyncIterator[bytes], context: Any) -> None:
        problem: Problem | None
        try:
            connection, welcome = self._hub.connect(await self._authenticate(context))
        except InvalidMessage as error:
            problem = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except PermissionError as error:
            problem = grpc.StatusCode.UNAUTHENTICATED, str(error)
        else:
            self._connections.add(connection)
            try:
                await context.write(encode(welcome))
                problem = await self._carry(connection, context)
            finally:
                self._connections.remove(connection)
                self._hub.disconnect(connection)
                if connection.role is Role.REPLICA and self._on_orphaned is not None:
                    self._on_orphaned()
        if problem is not None:
            code, reason = problem
            logger.warning("closed the stream of %s: %s", context.peer(), reason)
            await context.abort(code, reason)

    async def _authenticate(self, context: Any) -> Hello:
        try:
            payload = await asyncio.wait_for(context.read(), HELLO_TIMEOUT_S)
        except TimeoutError as error:
            # Perhaps it was us who did not listen: it may try again.
            raise InvalidMessage("the client did not say hello.", "Begin with Hello.") from error
        hello = decode_client_message(_payload(payload))
        if not isinstance(hello, Hello):
            raise InvalidMessage(
                f"the client began with {type(hello).__name__}.", "Begin with Hello."
            )
        if not hmac.compare_digest(hello.token.encode(), self._token):
            raise PermissionError(
                "the client showed a wrong token.\nUse the token of the engine's description."
            )
        return hello

    async def _carry(self, connection: Connection, context: Any) -> Problem | None:
        """Carry messages both ways until either side is through; return what went wrong."""
        reader = asyncio.ensure_future(self._read(connection, context))
        writer = asyncio.ensure_future(_write(connection, context))
        try:
            ends: set[asyncio.Future[Any]] = {reader, writer, connection.dropped}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reader.cancel()
            writer.cancel()
        if connection.dropped.done():
            reason = connection.dropped.result()
            return _DROP_CODES[reason], f"{connection.peer_id} was dropped: {reason}"
        try:
            await (reader if reader.done() else writer)
        except InvalidMessage as error:
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except grpc.aio.BaseError as error:
            logger.info("lost the stream of %s: %s", connection.peer_id, error)
        return None

    async def _read(self, connection: Connection, context: Any) -> None:
        while (payload := await context.read()) is not grpc.aio.EOF:
            self._hub.receive(connection, decode_client_message(payload))


async def _write(connection: Connection, context: Any) -> None:
    outbox = connection.outbox
    while True:
        await context.write(await outbox.get())
        if connection.role is Role.REPLICA:
            # A supervisor does not come back to a stream it lost: nothing to keep for it.
            outbox.acknowledge(outbox.last_sent)


def _payload(received: Any) -> bytes:
    if received is grpc.aio.EOF:
        raise InvalidMessage("the client left without a word.", "Begin with Hello.")
    payload: bytes = received
    return payload
