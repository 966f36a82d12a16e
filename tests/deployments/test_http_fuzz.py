"""Whatever a client sends, the last resort never answers: no 500, no trace, no torn response."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from deployments.chat_schema import ChatFields
from deployments.completion_schema import CompletionFields
from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from deployments.neutral_fields import CHAT_NEUTRAL_FIELDS, COMPLETION_NEUTRAL_FIELDS
from deployments.served_model import ServedModel
from tests.deployments.asgi_client import AsgiCall, call
from tests.deployments.fake_token_source import FakeTokenSource
from tests.deployments.tiny_tokenizer import make_tokenizer

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
FIELD_NAMES = {
    CHAT: [*ChatFields.model_fields, *CHAT_NEUTRAL_FIELDS],
    TEXT: [*CompletionFields.model_fields, *COMPLETION_NEUTRAL_FIELDS],
    "/tokenize": ["prompt", "messages", "add_special_tokens", "return_token_strs"],
    "/detokenize": ["tokens", "model"],
}
VALID: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    TEXT: {"prompt": "Hi"},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [1]},
}

texts = st.text(max_size=20) | st.sampled_from(["", "\0", "a" * 2000, "<|im_end|>", "🗼", "text"])
numbers = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, 1e308])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
# Things that mostly pass the first checks: what lies behind them sees them.
parts = st.fixed_dictionaries({"type": st.just("text"), "text": texts}) | values
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": texts},
        optional={"name": texts, "annotations": values},
    )
    | st.fixed_dictionaries(
        {"role": st.just("user"), "content": st.lists(parts, max_size=3)},
        optional={"tool_calls": values},
    ),
    min_size=1,
    max_size=3,
)
token_lists = st.lists(st.integers(0, 330), min_size=1, max_size=5)
chances = st.floats(0.01, 1)
NEAR_VALID: dict[str, st.SearchStrategy[Any]] = {
    "messages": messages,
    "prompt": texts | token_lists | st.lists(texts, max_size=3) | st.lists(token_lists, max_size=3),
    "tokens": token_lists,
    "model": st.just("tiny"),
    "stop": texts | st.lists(texts, max_size=4),
    "stop_token_ids": token_lists,
    "stream": st.booleans(),
    "stream_options": st.dictionaries(st.just("include_usage"), st.booleans()),
    "logit_bias": st.dictionaries(st.sampled_from(["1", "01", "319", "٣"]), chances),
    "chat_template_kwargs": st.dictionaries(
        st.sampled_from(["mood", "raise_exception", "range", "loop", "enable_thinking"]), values
    ),
    "temperature": st.floats(0, 2),
    "top_p": chances,
    "min_p": chances,
    "repetition_penalty": st.floats(0.5, 2),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "top_k": st.integers(-1, 400),
    "n": st.integers(1, 4),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "max_tokens": st.integers(1, 450),
    "max_completion_tokens": st.integers(1, 450),
    "min_tokens": st.integers(0, 3),
    "top_logprobs": st.integers(0, 20),
    "logprobs": st.booleans() | st.integers(0, 20),
    "cache_salt": st.text(min_size=1, max_size=5),
    "add_generation_prompt": st.booleans(),
    "continue_final_message": st.booleans(),
    "add_special_tokens": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "return_token_strs": st.booleans(),
}


@st.composite
def bodies(draw: st.DrawFn, path: str) -> dict[str, Any]:
    body: dict[str, Any] = dict(VALID[path])
    names = FIELD_NAMES[path]
    for name in draw(st.lists(st.sampled_from([n for n in names if n in NEAR_VALID]), max_size=6)):
        body[name] = draw(NEAR_VALID[name])
    if draw(st.integers(0, 2)) == 0:
        body[draw(st.sampled_from(names))] = draw(values)
    if draw(st.integers(0, 9)) == 0:
        body[draw(texts)] = draw(values)
    return body


@pytest.fixture(scope="module")
def fuzzed_app(tmp_path_factory: pytest.TempPathFactory) -> Starlette:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer = make_tokenizer(folder)
    source = FakeTokenSource(tokenizer)
    model = ServedModel("tiny", max_model_len=512, tokenizer=tokenizer, source=source)
    return build_http_app([model], HttpSettings(max_body_bytes=1 << 16))


fuzz = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check(response: AsgiCall, caplog: pytest.LogCaptureFixture) -> None:
    assert response.status in (200, 400, 404, 413)
    assert not caplog.records
    if response.headers["content-type"] == "application/json":
        body = response.json()
        assert (response.status == 200) == ("error" not in body)
        if response.status != 200:
            assert list(body["error"]) == ["message", "type", "param", "code"]
            assert len(body["error"]["message"]) < 1000
    else:
        assert all("error" not in event for event in response.events())


@pytest.mark.parametrize("path", list(VALID))
@fuzz
@given(data=st.data())
def test_any_json_object_gets_an_answer_or_a_4xx(
    fuzzed_app: Starlette, caplog: pytest.LogCaptureFixture, path: str, data: st.DataObject
) -> None:
    body = data.draw(bodies(path))
    with caplog.at_level(logging.WARNING):
        check(call(fuzzed_app, path, json.dumps(body).encode()), caplog)


@pytest.mark.parametrize("path", list(VALID))
@fuzz
@given(data=st.data())
def test_any_bytes_get_a_4xx_or_an_answer(
    fuzzed_app: Starlette, caplog: pytest.LogCaptureFixture, path: str, data: st.DataObject
) -> None:
    """A valid body with bytes cut out and put in."""
    body = json.dumps(VALID[path]).encode()
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, len(body)))
    junk = data.draw(st.binary(max_size=12) | st.sampled_from([b"NaN", b'"\\ud800"', b"[" * 5000]))
    with caplog.at_level(logging.WARNING):
        check(call(fuzzed_app, path, body[:start] + junk + body[end:]), caplog)


@fuzz
@given(
    path=st.text(max_size=30).map(lambda text: "/" + text) | st.sampled_from(list(VALID)),
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "", "X" * 50]),
    headers=st.dictionaries(
        st.sampled_from(
            ["content-length", "x-request-id", "authorization", "content-type", "host"]
        ),
        st.text(st.characters(max_codepoint=255), max_size=30),
    ),
)
def test_any_request_line_and_headers_get_a_4xx_or_an_answer(
    fuzzed_app: Starlette,
    caplog: pytest.LogCaptureFixture,
    path: str,
    method: str,
    headers: dict[str, str],
) -> None:
    with caplog.at_level(logging.WARNING):
        response = call(fuzzed_app, path, b"{}", headers, method)
    assert response.status in (200, 400, 404, 405, 413)
    assert not caplog.records
