"""Talks ASGI to an application, sees chunks as they come and hangs up when told."""

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message


class AsgiCall:
    """One POST, or GET when there is no body."""

    def __init__(
        self,
        app: ASGIApp,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        method: str | None = None,
    ) -> None:
        self._app = app
        self._body = json.dumps(body).encode() if isinstance(body, dict) else body or b""
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method or ("GET" if body is None else "POST"),
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (name.lower().encode(), value.encode("latin-1"))
                for name, value in (headers or {}).items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        self._body_was_read = False
        self._gone = asyncio.Event()
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []

    def hang_up(self) -> None:
        """Leave, as a client does that closes its connection."""
        self._gone.set()

    async def run(self) -> "AsgiCall":
        """Run until the application returns."""
        await self._app(self.scope, self._receive, self._send)
        return self

    @property
    def body(self) -> bytes:
        """Everything received."""
        return b"".join(self.parts)

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of all events; the last must be [DONE]."""
        lines = self.body.decode().split("\n\n")
        assert lines.pop() == ""
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    async def _receive(self) -> Message:
        if not self._body_was_read:
            self._body_was_read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            assert self.status is None
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert self.status is not None
            if message.get("body"):
                self.parts.append(message["body"])


def call(
    app: ASGIApp,
    path: str,
    body: bytes | dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> AsgiCall:
    """Run one call on an event loop of its own."""

    async def run() -> AsgiCall:
        return await AsgiCall(app, path, body, headers, method).run()

    return asyncio.run(run())
