"""Errors as HTTP: status, headers and a body of OpenAI's shape for each kind.

Whoever handles a request raises; `ErrorMiddleware` answers. What nobody foresaw becomes a 500
that tells the client nothing and the log everything.
"""

import logging
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.journal import Poisonous
from engine.errors import (
    DeadlinePassed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PageRayError,
    ReplicaLost,
)

logger = logging.getLogger("ray.serve")

JSON: Final = "application/json"


class InvalidApiKey(PageRayError):
    """No key, or one that is not among ours."""


class AdminOnly(PageRayError):
    """The key is known, and may not see this."""


class BodyTooLarge(PageRayError):
    """The request body has more bytes than allowed."""


class BodyTimeout(PageRayError):
    """The client took too long to send its body."""


class UnknownRequest(PageRayError):
    """Nothing is known of a request of this id."""


class FrontendSilent(PageRayError):
    """Another frontend did not answer in time."""


class UnknownRoute(PageRayError):
    """Nothing is served at this path."""


class MethodNotAllowed(PageRayError):
    """The path is served, but not with this method."""


class InternalError(PageRayError):
    """Our own fault."""


_SHAPES: Final[tuple[tuple[type[PageRayError], int, str, str | None], ...]] = (
    # kind, status, type, code; the first that fits counts
    (InvalidRequest, 400, "invalid_request_error", None),
    (InvalidApiKey, 401, "authentication_error", "invalid_api_key"),
    (AdminOnly, 403, "permission_error", "admin_key_required"),
    (ModelNotFound, 404, "not_found_error", "model_not_found"),
    (UnknownRequest, 404, "not_found_error", "request_not_found"),
    (UnknownRoute, 404, "not_found_error", "unknown_url"),
    (MethodNotAllowed, 405, "invalid_request_error", "method_not_allowed"),
    (BodyTimeout, 408, "invalid_request_error", "request_timeout"),
    (BodyTooLarge, 413, "invalid_request_error", "request_too_large"),
    (DeadlinePassed, 504, "timeout_error", "deadline_passed"),
    (Overloaded, 503, "overloaded_error", "overloaded"),
    (ReplicaLost, 503, "server_error", "replica_lost"),
    (FrontendSilent, 503, "server_error", "frontend_silent"),
    (Poisonous, 500, "server_error", "request_quarantined"),
    (PageRayError, 500, "server_error", "internal_error"),
)


def shape_of(kind: type[PageRayError]) -> tuple[int, str, str | None]:
    """HTTP status, `type` and `code` (None: it depends) of errors of this kind."""
    return next(shape[1:] for shape in _SHAPES if issubclass(kind, shape[0]))


def status_of(error: PageRayError) -> int:
    """HTTP status for the error."""
    return shape_of(type(error))[0]


def error_body(error: PageRayError) -> dict[str, Any]:
    """The JSON body, in OpenAI's words."""
    _, kind, code = shape_of(type(error))
    param = "model" if isinstance(error, ModelNotFound) else getattr(error, "param", None)
    return {
        "error": {
            "message": f"{error.cause} {error.fix}",
            "type": kind,
            "param": param,
            "code": getattr(error, "code", None) or code,
        }
    }


def error_response(error: PageRayError) -> Response:
    """The whole response."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    elif isinstance(error, ReplicaLost | FrontendSilent):
        headers["retry-after"] = "1"
    elif isinstance(error, InvalidApiKey):
        headers["www-authenticate"] = "Bearer"
    return Response(
        msgspec.json.encode(error_body(error)),
        status_code=status_of(error),
        headers=headers,
        media_type=JSON,
    )


def internal_error() -> InternalError:
    """What a client learns of a fault of ours."""
    return InternalError(
        "The server failed on this request.", "Send it again, or look at the server's log."
    )


async def routing_error_response(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for paths and methods that no route has."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        response = error_response(
            MethodNotAllowed(f"{path} does not take {request.method[:16]}.", f"Use {allowed}.")
        )
        response.headers["allow"] = allowed
        return response
    return error_response(
        UnknownRoute(f"Nothing is served at {path}.", "See the README for the endpoints.")
    )


class ErrorMiddleware:
    """Answers whatever is raised further in, as long as no response has begun."""

    def __init__(self, app: ASGIApp, on_error: Callable[[int, Scope], None]) -> None:
        self._app = app
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientDisconnect:
            logger.debug("a client left before its request was complete")
        except PageRayError as error:
            await self._answer(error, started, scope, receive, send)
        except Exception:  # the last resort: nothing unforeseen may reach the client
            logger.exception("request failed for a reason nobody foresaw: %s", scope.get("path"))
            await self._answer(internal_error(), started, scope, receive, send)

    async def _answer(
        self, error: PageRayError, started: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._on_error(status_of(error), scope)
        if not started and scope["type"] == "http":
            await error_response(error)(scope, receive, send)
