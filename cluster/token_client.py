"""A frontend's client of one engine's token server. Lives on one event loop."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

from cluster.messages import (
    Abort,
    Ack,
    Demand,
    Frame,
    Hello,
    InvalidMessage,
    Role,
    Welcome,
)
from cluster.token_stream import CONNECT_TIMEOUT_S, StreamRefused, TokenStream
from engine.errors import PageRayError, ReplicaLost
from engine.request import GenerateRequest

logger = logging.getLogger(__name__)

MIN_BACKOFF_S: Final = 0.02
MAX_BACKOFF_S: Final = 1.0
RECONNECT_S: Final = 1.0
"""A stream that is broken for longer is lost: another replica goes on sooner than this one can."""
SILENCE_S: Final = 4.0
"""So is one that brings nothing, be it heartbeats, for this long."""
SILENT_LOOKS: Final = 4
FRAMES_PER_ACK: Final = 8


class StreamSilent(ReplicaLost):
    """The stream is up, and the engine says nothing."""


class TokenClient:
    """Hands requests to one engine and receives its frames, whatever happens to the connection.

    A break is mended unseen: frames that were missed follow. If that fails, `on_lost` tells that
    all that ran there is gone; the client then goes on trying, for the engine's next requests.
    Callbacks run on the event loop and must not raise.
    """

    def __init__(
        self,
        replica_id: str,
        address: str,
        *,
        token: str,
        peer_id: str,
        on_frame: Callable[[str, Frame], None],
        on_lost: Callable[[str, str], None],
        reconnect_s: float = RECONNECT_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._replica_id = replica_id
        self._address = address
        self._token = token
        self._peer_id = peer_id
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reconnect_s = reconnect_s
        self._silence_s = silence_s
        self._stream: TokenStream | None = None
        self._broken_s = 0.0
        """When the last stream broke."""
        self._epoch: str | None = None
        """Engine that holds state for us; None when there is nothing to go back to."""
        self._last_frame = 0
        self._last_ack = 0
        self._num_heard = 0
        """Messages, heartbeats among them."""
        self._aborts: deque[tuple[float, Abort]] = deque()
        """Sent within the last seconds: a break may have swallowed them."""
        self._demand: Demand | None = None
        """Told last; likewise. None: nothing so far."""
        self._run_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect; call it on the event loop."""
        self._run_task = asyncio.create_task(self._run())
        self._run_task.add_done_callback(self._report)

    def submit(self, request: GenerateRequest) -> None:
        """Hand a request to the engine at once, if it can be reached.

        The replica's supervisor must bring the request as well: it does not go out again when a
        break swallows it, and a refusal is told to the supervisor alone. Raises InvalidRequest.
        """
        if self._stream is not None:
            self._stream.submit(self._peer_id, request)

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """End a request, or one choice of it. What it still brings arrives as ever."""
        if self._epoch is None:
            return
        now = self._now()
        while self._aborts and self._aborts[0][0] < now - self._reconnect_s - self._silence_s:
            self._aborts.popleft()
        message = Abort(request_id, choice_index)
        self._aborts.append((now, message))
        if self._stream is not None:
            self._stream.send(message)

    def tell(self, demand: Demand) -> None:
        """Tell the engine what is held back; it keeps that until it is told otherwise."""
        self._demand = demand
        if self._stream is not None:
            self._stream.send(demand)

    def close(self) -> None:
        """Begin to leave; no callback comes any more."""
        if self._run_task is not None:
            self._run_task.cancel()

    async def wait_closed(self) -> None:
        """Wait until `close` is through."""
        if self._run_task is not None:
            await asyncio.wait({self._run_task})

    async def _run(self) -> None:
        backoff_s = MIN_BACKOFF_S
        while True:
            try:
                stream, welcome = await TokenStream.open(
                    self._address, self._hello(), self._patience_s
                )
                backoff_s = MIN_BACKOFF_S
                await self._follow(stream, welcome)
            except StreamRefused as error:
                self._lose(error.cause)
                return
            except (ReplicaLost, InvalidMessage) as error:
                if await self._is_final(error):
                    self._lose(error.cause)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _follow(self, stream: TokenStream, welcome: Welcome) -> NoReturn:
        """Read the stream until it breaks; raises ReplicaLost or InvalidMessage."""
        if not welcome.resumed:
            if self._epoch is not None:
                self._lose("the engine gave up on us while we were away.")
            self._epoch = welcome.epoch
        self._stream = stream
        try:
            for _, abort in self._aborts:
                stream.send(abort)
            if self._demand is not None:
                stream.send(self._demand)
            await self._read(stream)
        finally:
            self._stream = None
            self._broken_s = self._now()
            await stream.close()

    async def _read(self, stream: TokenStream) -> NoReturn:
        silence: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(None) as limit:
                silence = asyncio.create_task(self._watch_silence(limit))
                while True:
                    message = await stream.receive()
                    self._num_heard += 1
                    if isinstance(message, Frame):
                        self._take(stream, message)
        except TimeoutError as error:
            raise StreamSilent(
                f"nothing has come from {self._address} for {self._silence_s:g} s.", "Try again."
            ) from error
        finally:
            if silence is not None:
                silence.cancel()

    async def _watch_silence(self, limit: asyncio.Timeout) -> None:
        # In several looks: if it was us who stood still, that was no more than one of them.
        num_silent_looks = 0
        while num_silent_looks < SILENT_LOOKS:
            num_heard = self._num_heard
            await asyncio.sleep(self._silence_s / SILENT_LOOKS)
            num_silent_looks = num_silent_looks + 1 if num_heard == self._num_heard else 0
        limit.reschedule(self._now())

    @property
    def _patience_s(self) -> float:
        """How long to try to connect."""
        if self._epoch is None:
            return CONNECT_TIMEOUT_S
        return max(self._broken_s + self._reconnect_s - self._now(), MIN_BACKOFF_S)

    async def _is_final(self, error: PageRayError) -> bool:
        """Whether what ran there is lost, now that the stream is broken."""
        if self._epoch is None:
            return False  # nothing ran there
        return (
            # The same frame would only come again; who is silent here is no better elsewhere.
            isinstance(error, InvalidMessage | StreamSilent)
            or self._now() - self._broken_s >= self._reconnect_s
            or await _is_gone(self._address, self._patience_s)
        )

    def _take(self, stream: TokenStream, frame: Frame) -> None:
        is_heartbeat = not (frame.outputs or frame.accepted or frame.changes)
        self._last_frame += not is_heartbeat
        if frame.number != self._last_frame:
            raise InvalidMessage(
                f"frame {frame.number} came in place of frame {self._last_frame}.",
                "Run the same version of PageRay on every node.",
            )
        self._on_frame(self._replica_id, frame)
        num_unacknowledged = self._last_frame - self._last_ack
        if num_unacknowledged >= FRAMES_PER_ACK or (is_heartbeat and num_unacknowledged):
            self._last_ack = self._last_frame
            stream.send(Ack(self._last_ack))

    def _hello(self) -> Hello:
        return Hello(
            self._token,
            self._peer_id,
            Role.FRONTEND,
            epoch=self._epoch,
            last_frame=self._last_frame,
        )

    def _lose(self, reason: str) -> None:
        self._epoch = None
        self._last_frame = self._last_ack = 0
        self._aborts.clear()
        logger.warning("%s is lost: %s", self._replica_id, reason)
        self._on_lost(self._replica_id, reason)

    def _report(self, run: "asyncio.Task[None]") -> None:
        if not run.cancelled() and run.exception() is not None:
            logger.error("%s: a callback failed", self._replica_id, exc_info=run.exception())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _is_gone(address: str, timeout_s: float) -> bool:
    """Whether nobody listens there any more: the process is gone, no use in waiting for it."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return True
    except OSError:  # TimeoutError among them
        return False
    writer.close()
    return False
