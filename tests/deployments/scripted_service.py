"""An HTTP service on a port of this machine, which answers as a test tells it to."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[[dict[str, Any], int], Response]
"""Answers a body that came so many times before."""


def completion(text: str) -> Response:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    body = {"choices": [{"text": text}], "usage": usage}
    return JSONResponse(body, headers={"x-request-id": f"id-{text}"})


def refusal(status_code: int, message: str, **headers: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code, headers)


class ScriptedService:
    """Its prompts are what tests tell their requests apart by."""

    def __init__(self) -> None:
        self.handle: Handler = lambda body, _: completion(body["prompt"])
        self.delay_s = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.authorization: str | None = None
        self.connections: set[Any] = set()
        self.most_at_once = 0
        self._num_open = 0
        routes = [
            Route("/v1/models", lambda _: JSONResponse({"data": []})),
            Route("/v1/completions", self._complete, methods=["POST"]),
        ]
        self.app: ASGIApp = Starlette(routes=routes)

    def prompts(self) -> list[str]:
        """Everything that was asked, in order."""
        return [body["prompt"] for body in self.bodies]

    async def _complete(self, request: Request) -> Response:
        body = json.loads(await request.body())
        num_before = self.prompts().count(body["prompt"])
        self.bodies.append(body)
        self.authorization = request.headers.get("authorization")
        self.connections.add(request.client)
        self._num_open += 1
        self.most_at_once = max(self.most_at_once, self._num_open)
        await asyncio.sleep(self.delay_s)
        self._num_open -= 1
        return self.handle(body, num_before)


class Hangup(Response):
    """The connection ends before the answer does."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"10")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Serve an application; yield its URL."""
    config = uvicorn.Config(app, lifespan="off", ws="none", log_level="critical")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
