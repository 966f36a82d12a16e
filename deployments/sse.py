"""Server-sent events: how JSON becomes an event and how events go out."""

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Message, Send

_DONE: Final = b"data: [DONE]\n\n"
_HEADERS: Final[Sequence[tuple[bytes, bytes]]] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # tells nginx to pass every event on at once
)


def encode_event(payload: Any) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


class EventSender:
    """Sends events as the body of one response."""

    def __init__(self, send: Send) -> None:
        self._send_message = send
        self._waiting_since_s: float | None = None

    @property
    def stuck_s(self) -> float:
        """How long the client has not taken what is being sent."""
        if self._waiting_since_s is None:
            return 0.0
        return time.monotonic() - self._waiting_since_s

    async def start(self) -> None:
        """Send the headers."""
        await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})

    async def send(self, events: bytes) -> None:
        """Send any number of events."""
        if events:
            await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def finish(self) -> None:
        """Say that this was all, and end the response."""
        await self._send({"type": "http.response.body", "body": _DONE, "more_body": False})

    async def _send(self, message: Message) -> None:
        self._waiting_since_s = time.monotonic()
        try:
            await self._send_message(message)
        except OSError:  # some servers say so when the connection is gone
            raise ClientDisconnect from None
        self._waiting_since_s = None
