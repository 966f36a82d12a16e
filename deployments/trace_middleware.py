"""Opens a span for every request that generates, under its client's if it says so.

W3C's `traceparent` and `tracestate` are taken over. What the span holds of the request itself is in
deployments/request_trace.py.
"""

from collections.abc import Collection
from http import HTTPStatus
from typing import Final

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.http_errors import status_of
from engine.errors import PageRayError

_SPAN: Final = "pageray.span"
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def span_of(scope: Scope) -> Span:
    """The span of a request; one that records nothing where there is none."""
    span: Span = scope.get(_SPAN, INVALID_SPAN)
    return span


class TraceMiddleware:
    """Spans from a request's arrival until the last byte of its answer."""

    def __init__(self, app: ASGIApp, tracer: Tracer, paths: Collection[str]) -> None:
        """Trace what goes to these paths."""
        self._app = app
        self._tracer = tracer
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        span = self._tracer.start_span(
            f"{scope['method']} {scope['path']}",
            _PROPAGATOR.extract(dict(Headers(scope=scope))),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "http.route": scope["path"],
                "url.path": scope["path"],
            },
        )
        scope[_SPAN] = span
        status: int | None = None
        is_complete = False

        async def watch(message: Message) -> None:
            nonlocal status, is_complete
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                is_complete = True

        try:
            await self._app(scope, receive, watch)
        except ClientDisconnect:
            raise
        except PageRayError as error:
            status, is_complete = status_of(error), True
            raise
        except Exception:
            status, is_complete = HTTPStatus.INTERNAL_SERVER_ERROR, True
            raise
        finally:
            _end(span, status, is_complete=is_complete)


def _end(span: Span, status: int | None, *, is_complete: bool) -> None:
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if not is_complete:
        span.set_attribute("error.type", "client_disconnected")
        span.set_status(StatusCode.ERROR, "the client left before its answer was complete")
    elif status is not None and status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.set_attribute("error.type", str(status))
        span.set_status(StatusCode.ERROR)
    span.end()
