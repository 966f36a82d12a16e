"""GET /openapi.json: every route, what it takes and what it answers, as OpenAPI 3.1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from cluster.journal import Poisonous
from deployments import openapi_answers as answers
from deployments.api_keys import OPEN_PATHS, shows_the_service
from deployments.chat_schema import ChatFields
from deployments.completion_endpoint import SESSION_HEADER
from deployments.completion_schema import CompletionFields
from deployments.http_errors import (
    JSON,
    AdminOnly,
    BodyTimeout,
    BodyTooLarge,
    FrontendSilent,
    InternalError,
    InvalidApiKey,
    UnknownRequest,
    shape_of,
)
from deployments.http_settings import HttpSettings
from deployments.neutral_fields import CHAT_NEUTRAL_FIELDS, COMPLETION_NEUTRAL_FIELDS, NeutralFields
from deployments.openai_schema import Fields
from deployments.openapi_schemas import reference, schemas_of
from deployments.tenant import ApiKey
from deployments.tokenize import DetokenizeFields, TokenizeChatFields, TokenizeTextFields
from engine.errors import (
    DeadlinePassed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PageRayError,
    ReplicaLost,
)

Errors = tuple[type[PageRayError], ...]

_NEUTRAL: Final[Mapping[type[Fields], NeutralFields]] = {
    ChatFields: CHAT_NEUTRAL_FIELDS,
    CompletionFields: COMPLETION_NEUTRAL_FIELDS,
    TokenizeTextFields: {},
    TokenizeChatFields: {},
    DetokenizeFields: {},
}
_BODY: Final[Errors] = (InvalidRequest, ModelNotFound, BodyTimeout, BodyTooLarge)
_GENERATION: Final[Errors] = (*_BODY, Overloaded, ReplicaLost, DeadlinePassed, Poisonous)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one route does. Its method is POST if it takes a body."""

    summary: str
    answer: type[BaseModel] | str
    """Of status 200: JSON, or of this media type."""
    also_503: bool = False
    """Whether 503 brings the same form."""
    body: tuple[type[Fields], ...] = ()
    """Forms that the body may have."""
    chunk: type[BaseModel] | None = None
    """Of the events, where the answer may be a stream."""
    errors: Errors = ()
    path_parameter: str | None = None


_OPERATIONS: Final[Mapping[str, Operation]] = {
    "/v1/chat/completions": Operation(
        summary="Answer a chat",
        body=(ChatFields,),
        answer=answers.ChatCompletion,
        chunk=answers.ChatCompletionChunk,
        errors=_GENERATION,
    ),
    "/v1/completions": Operation(
        summary="Go on from a prompt, or from each of several",
        body=(CompletionFields,),
        answer=answers.Completion,
        chunk=answers.CompletionChunk,
        errors=_GENERATION,
    ),
    "/v1/models": Operation(summary="Names of the models", answer=answers.ModelList),
    "/v1/models/{model}": Operation(
        summary="One name of a model",
        answer=answers.Model,
        errors=(ModelNotFound,),
        path_parameter="model",
    ),
    "/tokenize": Operation(
        summary="Token ids of a text or a chat",
        body=(TokenizeTextFields, TokenizeChatFields),
        answer=answers.Tokens,
        errors=_BODY,
    ),
    "/detokenize": Operation(
        summary="Text of token ids", body=(DetokenizeFields,), answer=answers.Text, errors=_BODY
    ),
    "/health": Operation(
        summary="Whether every replica makes progress", answer=answers.Health, also_503=True
    ),
    "/ready": Operation(
        summary="Whether every model takes requests", answer=answers.Readiness, also_503=True
    ),
    "/status": Operation(summary="What the replicas hold", answer=answers.Status),
    "/status/why/{request_id}": Operation(
        summary="Why a request went where it did",
        answer=answers.Why,
        errors=(UnknownRequest, FrontendSilent),
        path_parameter="request_id",
    ),
    "/metrics": Operation(summary="Prometheus' text format", answer="text/plain"),
    "/version": Operation(summary="Version of PageRay", answer=answers.Version),
    "/openapi.json": Operation(summary="This document", answer=JSON),
}


class OpenApiRoute:
    """Serves the document of one application."""

    def __init__(self, settings: HttpSettings) -> None:
        self._body = msgspec.json.encode(build_document(settings))

    async def document(self, request: Request) -> Response:
        """The document."""
        return Response(self._body, media_type=JSON)


def build_document(settings: HttpSettings) -> dict[str, Any]:
    """The document: names of fields, forms and statuses; nothing of the models that are served."""
    kinds = [
        kind
        for operation in _OPERATIONS.values()
        for kind in (operation.answer, operation.chunk)
        if isinstance(kind, type)
    ]
    components: dict[str, Any] = {"schemas": schemas_of(_NEUTRAL, [*kinds, answers.Error])}
    if settings.api_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "PageRay", "version": settings.version},
        "paths": {
            path: {
                "post" if operation.body else "get": _describe(
                    operation, _key_errors(path, settings.api_keys)
                )
            }
            for path, operation in _OPERATIONS.items()
        },
        "components": components,
    }


def _key_errors(path: str, keys: Sequence[ApiKey]) -> Errors:
    """Why a key may be refused there; none: no key is asked for."""
    if shows_the_service(path) and any(key.admin for key in keys):
        return (InvalidApiKey, AdminOnly)
    asks = path not in OPEN_PATHS and any(not key.admin for key in keys)
    return (InvalidApiKey,) if asks else ()


def _describe(operation: Operation, key_errors: Errors) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": operation.summary}
    if operation.path_parameter is not None:
        described["parameters"] = [_parameter(operation.path_parameter, "path")]
    if operation.chunk is not None:
        described["parameters"] = [_parameter(SESSION_HEADER, "header")]
    if operation.body:
        forms = [reference(kind) for kind in operation.body]
        schema = forms[0] if len(forms) == 1 else {"anyOf": forms}
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if key_errors:
        described["security"] = [{"key": []}]
    errors = _error_answers((*key_errors, *operation.errors, InternalError))
    described["responses"] = {**_answers(operation), **errors}
    return described


def _parameter(name: str, place: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}


def _answers(operation: Operation) -> dict[str, Any]:
    if isinstance(operation.answer, str):
        content: dict[str, Any] = {operation.answer: {}}
    else:
        content = {JSON: {"schema": reference(operation.answer)}}
    description = "The answer."
    if operation.chunk is not None:
        content["text/event-stream"] = {}  # OpenAPI 3.1 has no words for what is in an event
        description += (
            f" With `stream`, events whose data are each a {operation.chunk.__name__}, or an Error"
            " as the last of them; then [DONE]."
        )
    answered = {"200": {"description": description, "content": content}}
    if operation.also_503:
        answered["503"] = {"description": "It is not so.", "content": content}
    return answered


def _error_answers(errors: Errors) -> dict[str, Any]:
    """Errors of one status share an entry."""
    described: dict[str, Any] = {}
    for kind in errors:
        status, type_, _ = shape_of(kind)
        entry = described.setdefault(
            str(status),
            {"description": "", "content": {JSON: {"schema": reference(answers.Error)}}},
        )
        says = (kind.__doc__ or "").split("\n")[0]
        entry["description"] = f"{entry['description']} {type_}: {says}".strip()
    return dict(sorted(described.items()))
