"""The fields `priority` and `deadline_s`: where they go, what they refuse, how a deadline ends."""

from typing import Any

import pytest
from starlette.applications import Starlette

from engine.output import DEADLINE_PASSED, FinishReason
from tests.deployments.asgi_client import AsgiCall, call
from tests.deployments.fake_token_source import FakeTokenSource

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    TEXT: {"prompt": ["Hi", "Ho"]},
}

both = pytest.mark.parametrize("path", [CHAT, TEXT])


def ask(app: Starlette, path: str, **fields: Any) -> AsgiCall:
    return call(app, path, {**BODIES[path], **fields})


@both
@pytest.mark.parametrize("priority", [0, 7, -3, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("deadline_s", [None, 0.25, 30, 1e9])
def test_priority_and_deadline_reach_the_engine_with_every_prompt(
    app: Starlette, source: FakeTokenSource, path: str, priority: int, deadline_s: float | None
) -> None:
    assert ask(app, path, priority=priority, deadline_s=deadline_s).status == 200
    assert source.requests
    for request in source.requests:
        assert (request.priority, request.deadline_s) == (priority, deadline_s)


@both
def test_without_the_fields_all_are_of_one_class_and_nobody_gives_up(
    app: Starlette, source: FakeTokenSource, path: str
) -> None:
    ask(app, path)
    assert {(r.priority, r.deadline_s) for r in source.requests} == {(0, None)}


@both
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 0.5),
        ("priority", "high"),
        ("priority", True),
        ("priority", 2**31),
        ("priority", -(2**31) - 1),
        ("deadline_s", 0),
        ("deadline_s", -1),
        ("deadline_s", "soon"),
        ("deadline_s", True),
        ("deadline_s", [1]),
    ],
)
def test_value_that_makes_no_sense_is_refused_by_name(
    app: Starlette, source: FakeTokenSource, path: str, field: str, value: object
) -> None:
    response = ask(app, path, **{field: value})
    assert response.status == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", field)
    assert not source.requests


def give_up(source: FakeTokenSource) -> None:
    source.last_finish_reason = FinishReason.ERROR
    source.error_text = DEADLINE_PASSED


@both
def test_request_whose_deadline_passes_is_a_504(
    app: Starlette, source: FakeTokenSource, path: str
) -> None:
    give_up(source)
    response = ask(app, path, deadline_s=0.5)
    assert response.status == 504
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_passed")
    assert "'deadline_s'" in error["message"]
    assert source.num_open == 0


@both
def test_deadline_that_passes_before_the_first_token_of_a_stream_is_a_504_too(
    app: Starlette, source: FakeTokenSource, path: str
) -> None:
    give_up(source)
    source.tokens_per_output = 1000
    response = ask(app, path, deadline_s=0.5, stream=True)
    assert response.status == 504
    assert response.json()["error"]["code"] == "deadline_passed"


@both
def test_deadline_that_passes_within_a_stream_is_its_last_event(
    app: Starlette, source: FakeTokenSource, path: str
) -> None:
    give_up(source)
    response = ask(app, path, deadline_s=0.5, stream=True)
    assert response.status == 200
    *before, last = response.events()
    assert before
    assert last["error"]["code"] == "deadline_passed"
    reasons = [choice["finish_reason"] for event in before for choice in event["choices"]]
    assert set(reasons) == {None}
