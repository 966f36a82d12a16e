"""A supervisor's client of its group's token server. Lives on one event loop."""

import asyncio

from cluster.messages import Abort, Ended, Hello, InvalidMessage, Refused, Role
from cluster.token_stream import TokenStream
from engine.errors import InvalidRequest, PageRayError, ReplicaLost
from engine.request import GenerateRequest


class SubmitClient:
    """Hands requests to the engine and tells when each has ended. Does not mend a break."""

    def __init__(self, address: str, *, token: str, peer_id: str) -> None:
        self._address = address
        self._hello = Hello(token, peer_id, Role.REPLICA)
        self._pending: dict[str, asyncio.Future[None]] = {}

    async def connect(self) -> None:
        """Open the stream. Raises ReplicaLost."""
        self._stream, _ = await TokenStream.open(self._address, self._hello)
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())

    async def submit(self, frontend_id: str, request: GenerateRequest) -> None:
        """Submit the request; return when all its choices have ended.

        Raises what the engine refused it with, or ReplicaLost when the stream breaks. Cancel it
        to abort the request.
        """
        request_id = request.request_id
        if self._lost.done():
            raise ReplicaLost(self._lost.result(), "Place the request again.")
        if request_id in self._pending:
            raise InvalidRequest(
                f"request id '{request_id}' is in use.",
                "Give every request an id of its own.",
                param="request_id",
            )
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = end
        try:
            self._stream.submit(frontend_id, request)
            await end
        except asyncio.CancelledError:
            self._stream.send(Abort(request_id))
            raise
        finally:
            del self._pending[request_id]

    async def wait_lost(self) -> str:
        """Return why, once the stream is broken."""
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        """End the stream; the engine aborts what is left."""
        self._lose("the supervisor closed its token stream.")
        self._reader.cancel()
        await asyncio.wait({self._reader})
        await self._stream.close()

    async def _read(self) -> None:
        try:
            while True:
                message = await self._stream.receive()
                if isinstance(message, Refused):
                    self._end(message.request_id, message.error.to_error())
                elif isinstance(message, Ended):
                    for request_id in message.request_ids:
                        self._end(request_id, None)
        except (ReplicaLost, InvalidMessage) as error:
            self._lose(error.cause)

    def _lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)
        for request_id in self._pending:
            self._end(request_id, ReplicaLost(reason, "Place the request again."))

    def _end(self, request_id: str, error: PageRayError | None) -> None:
        end = self._pending.get(request_id)
        if end is None or end.done():
            return  # cancelled a moment ago
        if error is None:
            end.set_result(None)
        else:
            end.set_exception(error)
