"""The client's end of one stream to a token server. Says hello, sends, receives, breaks."""

import asyncio
from typing import Any, Final

import grpc
import grpc.aio

from cluster.messages import (
    MAX_MESSAGE_BYTES,
    Hello,
    InvalidMessage,
    Message,
    ServerMessage,
    Submit,
    Welcome,
    decode_server_message,
    encode,
)
from cluster.token_server import METHOD, SERVICE
from engine.errors import InvalidRequest, ReplicaLost
from engine.request import GenerateRequest

CONNECT_TIMEOUT_S: Final = 5.0

CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Engines are inside the cluster, whatever proxy the environment names.
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # One connection per stream: streams that share one also share its flow control.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

# A wrong token; another client with our name, whose stream we would only break in turn.
_FINAL_CODES: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.ALREADY_EXISTS)


class StreamRefused(ReplicaLost):
    """The token server does not want this client; asking again will not help."""


class TokenStream:
    """One open stream. Made by `open`, ended by `close`."""

    def __init__(self, address: str, channel: grpc.aio.Channel, call: Any) -> None:
        self._address = address
        self._channel = channel
        self._call = call
        self._unsent: asyncio.Queue[bytes] = asyncio.Queue()
        self._writer = asyncio.create_task(self._write())

    @classmethod
    async def open(
        cls, address: str, hello: Hello, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> tuple["TokenStream", Welcome]:
        """Connect and say hello. Raises StreamRefused or, if it may yet work, ReplicaLost."""
        channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        stream = cls(address, channel, channel.stream_stream(f"/{SERVICE}/{METHOD}")())
        stream.send(hello)
        try:
            async with asyncio.timeout(timeout_s):
                welcome = await stream.receive()
            if not isinstance(welcome, Welcome):
                raise InvalidMessage(
                    f"the token server at {address} answered {type(welcome).__name__}.",
                    "Run the same version of PageRay on every node.",
                )
        except TimeoutError as error:
            await stream.close()
            raise _broken(address, f"no answer for {timeout_s:.2g} s") from error
        except BaseException:
            await stream.close()
            raise
        return stream, welcome

    def send(self, message: Message) -> None:
        """Send in order; a message that cannot be encoded fails here and harms nobody else."""
        self._unsent.put_nowait(encode(message))

    def submit(self, frontend_id: str, request: GenerateRequest) -> None:
        """Send a request. Raises InvalidRequest when it cannot be encoded."""
        try:
            self.send(Submit(frontend_id, request))
        except (OverflowError, UnicodeEncodeError) as error:
            raise InvalidRequest(
                f"the request cannot be sent to the engine: {error}.",
                "Send numbers of at most 64 bits and valid Unicode text.",
            ) from error

    async def receive(self) -> ServerMessage:
        """Wait for the next message. Raises ReplicaLost once the stream is broken."""
        try:
            payload = await self._call.read()
        except grpc.aio.AioRpcError as error:
            if error.code() in _FINAL_CODES:
                raise StreamRefused(
                    f"the token server at {self._address} refused us: {error.details()}",
                    "Give each client the engine's token and a name of its own.",
                ) from error
            raise _broken(self._address, error.details()) from error
        if payload is grpc.aio.EOF:
            raise _broken(self._address, "the engine ended it")
        return decode_server_message(payload)

    async def close(self) -> None:
        """End the stream and its connection."""
        self._writer.cancel()
        await asyncio.wait({self._writer})
        self._call.cancel()
        await self._channel.close()

    async def _write(self) -> None:
        while True:
            payload = await self._unsent.get()
            try:
                await self._call.write(payload)
            except (grpc.RpcError, asyncio.InvalidStateError):
                return  # the stream is broken; `receive` says why


def _broken(address: str, reason: str | None) -> ReplicaLost:
    return ReplicaLost(f"the token stream from {address} broke: {reason}.", "Try again.")
