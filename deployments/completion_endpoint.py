"""Serves POST requests that generate text, in whatever dialect: one answer or an event stream."""

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.api_keys import tenant_of
from deployments.completion import Completion, Piece
from deployments.dialect import Ask, Dialect
from deployments.disconnect import run_until_disconnect
from deployments.door import Door
from deployments.http_errors import JSON, error_body, internal_error
from deployments.http_settings import HttpSettings
from deployments.json_body import read_json_object
from deployments.metrics import HttpMetrics
from deployments.request_trace import RequestTrace
from deployments.served_model import ServedModel, ServedModels
from deployments.sse import EventSender, encode_event
from deployments.trace_middleware import span_of
from engine.errors import PageRayError

logger = logging.getLogger("ray.serve")

SESSION_HEADER = "x-session-id"
MAX_SESSION_CHARACTERS = 256


class CompletionEndpoint:
    """ASGI endpoint of one dialect. A client that leaves has its request aborted at once."""

    def __init__(
        self,
        dialect: Callable[[ServedModel, HttpSettings], Dialect],
        models: ServedModels,
        settings: HttpSettings,
        metrics: HttpMetrics,
        door: Door,
        trace: RequestTrace,
    ) -> None:
        self._models = models
        self._dialects = {model.name: dialect(model, settings) for model in models}
        self._settings = settings
        self._metrics = metrics
        self._door = door
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        with self._door.enter():
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived_s = time.monotonic()
        values = await read_json_object(scope, receive, self._settings)

        sender = EventSender(send)

        async def serve() -> None:
            model = self._models.choose(scope, values)
            dialect = self._dialects[model.name]
            ask = await dialect.read(values, tenant_of(scope))
            session_id = _session_id(scope)
            requests = [replace(request, session_id=session_id) for request in ask.requests]
            metrics = self._metrics.of(model.name)
            completion = Completion(model.source, model.tokenizer, requests, metrics, arrived_s)
            try:
                if ask.stream:
                    await _stream(ask, completion, sender)
                else:
                    await _answer(ask, completion, scope, receive, send)
            finally:
                self._trace.describe(span_of(scope), dialect.operation, model.name, completion)

        def is_stuck() -> bool:
            return sender.stuck_s > self._settings.send_timeout_s

        await run_until_disconnect(
            serve(), receive, is_stuck, check_period_s=self._settings.send_timeout_s / 4
        )


def _session_id(scope: Scope) -> str:
    """The client's name for its conversation, whose turns go to one replica where that is best."""
    return Headers(scope=scope).get(SESSION_HEADER, "")[:MAX_SESSION_CHARACTERS]


async def _answer(
    ask: Ask, completion: Completion, scope: Scope, receive: Receive, send: Send
) -> None:
    choices = await _collect(completion)
    body = ask.writer.answer(choices, completion.usage)
    await Response(body, media_type=JSON)(scope, receive, send)


async def _collect(completion: Completion) -> list[list[Piece]]:
    choices: list[list[Piece]] = [[] for _ in range(completion.num_choices)]
    async with aclosing(completion.pieces()) as pieces:
        async for piece in pieces:
            choices[piece.choice_index].append(piece)
    return choices


async def _stream(ask: Ask, completion: Completion, sender: EventSender) -> None:
    async with aclosing(completion.pieces()) as pieces:
        # An error before the first piece still gets its own status: no header is out yet.
        first = await anext(pieces)
        await sender.start()
        await sender.send(ask.writer.opening() + ask.writer.events(first))
        completion.note_sent()
        async with aclosing(_events(ask, completion, pieces)) as rest:
            async for events in rest:
                await sender.send(events)
        await sender.finish()


async def _events(
    ask: Ask, completion: Completion, pieces: AsyncGenerator[Piece]
) -> AsyncGenerator[bytes]:
    """Events after the first piece; an error becomes the last of them."""
    try:
        async for piece in pieces:
            yield ask.writer.events(piece)
    except PageRayError as error:
        yield encode_event(error_body(error))
    except Exception:  # the headers are out: an event is the only way to tell the client
        logger.exception("stream failed for a reason nobody foresaw")
        yield encode_event(error_body(internal_error()))
    else:
        yield ask.writer.closing(completion.usage)
