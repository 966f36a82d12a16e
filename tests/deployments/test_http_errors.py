"""What clients get when something is wrong: status, cause, fix and the field at fault."""

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.types import Message

from deployments.http_settings import HttpSettings
from deployments.tenant import ApiKey
from engine.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PageRayError,
    PromptTooLong,
    ReplicaLost,
)
from engine.output import FinishReason
from tests.deployments.asgi_client import AsgiCall, call
from tests.deployments.conftest import BuildApp
from tests.deployments.fake_token_source import FakeTokenSource

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


def check_shape(response: AsgiCall) -> dict[str, Any]:
    """Every error looks the same; return what is inside."""
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert ". " in error["message"], "a cause and a fix"
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 1000}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "messages"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["x"] * 100_000}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": "x" * 5000}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"logit_bias": {str(i): 0 for i in range(5000)}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"inclde_usage": True}}, "stream_options.inclde_usage"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{}] * 1000}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "nme": "y"}]}, "messages[0].nme"),
        ({"messages": [{"role": "user", "content": "x", "name": 1}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
    ],
)
def test_invalid_value_is_refused_naming_the_field(
    app: Starlette, source: FakeTokenSource, fields: dict[str, Any], param: str
) -> None:
    response = call(app, CHAT, {**BODY, **fields})
    assert response.status == 400
    error = check_shape(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert not source.requests


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (CHAT, {"tool_choice": "auto"}),
        (CHAT, {"response_format": {"type": "json_object"}}),
        (CHAT, {"functions": [{"name": "f"}]}),
        (CHAT, {"audio": {"voice": "alloy", "format": "wav"}}),
        (CHAT, {"modalities": ["text", "audio"]}),
        (CHAT, {"store": True}),
        (CHAT, {"service_tier": "flex"}),
        (CHAT, {"chat_template": "{{ 1 }}"}),
        (CHAT, {"reasoning_effort": "high"}),
        (TEXT, {"best_of": 2}),
        (TEXT, {"echo": True}),
        (TEXT, {"suffix": "end"}),
        (TEXT, {"prompt_logprobs": 1}),
        (TEXT, {"use_beam_search": True}),
        (TEXT, {"guided_json": {}}),
        (TEXT, {"allowed_token_ids": [1]}),
    ],
)
def test_known_but_unsupported_field_is_refused_by_name(
    app: Starlette, path: str, field: dict[str, Any]
) -> None:
    body = BODY if path == CHAT else {"prompt": "Hi"}
    response = call(app, path, {**body, **field})
    assert response.status == 400
    error = check_shape(response)
    assert error["code"] == "unsupported_parameter"
    assert [error["param"]] == list(field)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
    ],
)
def test_tools_and_images_in_messages_are_refused_by_place(
    app: Starlette, message: dict[str, Any]
) -> None:
    response = call(app, CHAT, {"messages": [message]})
    assert response.status == 400
    error = check_shape(response)
    assert error["code"] == "unsupported_parameter"
    assert error["param"].startswith("messages[0].")


def test_unknown_field_is_refused_with_the_nearest_known_one(app: Starlette) -> None:
    error = check_shape(call(app, CHAT, {**BODY, "max_tokns": 3}))
    assert error["param"] == "max_tokns"
    assert error["code"] == "unknown_parameter"
    assert "'max_tokens'" in error["message"]
    error = check_shape(call(app, CHAT, {**BODY, "z" * 100_000: 3}))
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"messages": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999}',
        b'{"n": ' + b"9" * 10_000 + b"}",
        b"[" * 100_000,
        b'{"messages": ' + b'{"a":' * 100_000,
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xed\xa0\x80"}',
        '{"prompt": "x"}'.encode("utf-16"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
def test_body_that_is_no_json_object_is_refused(app: Starlette, path: str, body: bytes) -> None:
    response = call(app, path, body)
    assert response.status == 400
    check_shape(response)


def test_unknown_model_is_a_404(app: Starlette) -> None:
    for path, body in ((CHAT, BODY), (TEXT, {"prompt": "x"}), ("/tokenize", {"prompt": "x"})):
        response = call(app, path, {**body, "model": "gpt-5"})
        assert response.status == 404
        error = check_shape(response)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert call(app, "/v1/models/gpt-5").status == 404


def test_unknown_paths_and_methods_have_the_same_shape(app: Starlette) -> None:
    response = call(app, "/v1/nothing")
    assert response.status == 404
    assert check_shape(response)["code"] == "unknown_url"
    response = call(app, CHAT)
    assert response.status == 405
    assert response.headers["allow"] == "POST"
    assert check_shape(response)["code"] == "method_not_allowed"


def test_body_beyond_the_limit_is_a_413_however_it_is_sent(build_app: BuildApp) -> None:
    app = build_app(max_body_bytes=100)
    for headers in ({}, {"content-length": "101"}, {"content-length": "9" * 20}):
        response = call(app, TEXT, b" " * 101, headers)
        assert response.status == 413
        assert check_shape(response)["code"] == "request_too_large"
    assert call(app, TEXT, {"prompt": "x"}).status == 200


def test_body_that_does_not_arrive_is_a_408(build_app: BuildApp) -> None:
    app = build_app(body_timeout_s=0.01)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = AsgiCall(app, TEXT, {}).scope
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequest("Bad.", "Fix.", "prompt"), 400, "invalid_request_error", None),
        (PromptTooLong("Long.", "Cut."), 400, "invalid_request_error", "context_length_exceeded"),
        (ModelNotFound("Gone.", "Look."), 404, "not_found_error", "model_not_found"),
        (Overloaded("Full.", "Wait.", 7.2), 503, "overloaded_error", "overloaded"),
        (ReplicaLost("Dead.", "Again."), 503, "server_error", "replica_lost"),
        (PageRayError("Odd.", "Ask."), 500, "server_error", "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_error_before_the_first_token_has_its_own_status(
    app: Starlette,
    source: FakeTokenSource,
    error: PageRayError,
    status: int,
    kind: str,
    code: str | None,
    stream: bool,
) -> None:
    source.error = error
    response = call(app, CHAT, {**BODY, "stream": stream})
    assert response.status == status
    found = check_shape(response)
    assert (found["type"], found["code"]) == (kind, code)
    assert found["message"] == f"{error.cause} {error.fix}"
    if isinstance(error, Overloaded):
        assert response.headers["retry-after"] == "8"


def test_error_in_the_middle_of_a_stream_is_an_event(
    app: Starlette, source: FakeTokenSource
) -> None:
    source.error = ReplicaLost("Dead.", "Again.")
    source.fail_after = 2
    response = call(app, CHAT, {**BODY, "stream": True, "stream_options": {"include_usage": True}})
    assert response.status == 200
    *before, last = response.events()
    assert last["error"]["code"] == "replica_lost"
    assert all(event["choices"][0]["finish_reason"] is None for event in before)
    assert call(app, CHAT, BODY).status == 503


@pytest.mark.parametrize(
    ("reason", "status"), [(FinishReason.ERROR, 500), (FinishReason.ABORT, 503)]
)
def test_request_that_the_engine_gives_up_never_looks_finished(
    app: Starlette, source: FakeTokenSource, reason: FinishReason, status: int
) -> None:
    source.last_finish_reason = reason
    assert call(app, CHAT, BODY).status == status
    assert "error" in call(app, CHAT, {**BODY, "stream": True}).events()[-1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fail_after", [0, 2])
def test_unforeseen_fault_tells_the_log_and_not_the_client(
    app: Starlette,
    source: FakeTokenSource,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
    fail_after: int,
) -> None:
    source.error = RuntimeError("secret")
    source.fail_after = fail_after
    response = call(app, CHAT, {**BODY, "stream": stream})
    assert b"secret" not in response.body
    assert "secret" in caplog.text
    if stream and fail_after:
        assert response.events()[-1]["error"]["code"] == "internal_error"
    else:
        assert response.status == 500
        assert check_shape(response)["code"] == "internal_error"


def test_settings_never_show_keys() -> None:
    keys = (ApiKey.of("sk-secret"),)
    settings = HttpSettings(api_keys=keys)
    assert "secret" not in repr(settings)
    assert keys[0].key_sha256 not in repr(settings)


def test_deeply_nested_template_arguments_are_refused(build_app: BuildApp) -> None:
    app = build_app(max_model_len=99)
    nested: Any = []
    for _ in range(500):
        nested = [nested]
    body = {**BODY, "chat_template_kwargs": {"mood": nested}}
    assert call(app, CHAT, json.dumps(body).encode()).status in (200, 400)
