"""POST /v1/completions: forms of the prompt, many prompts at once, the older logprobs."""

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette

from engine.errors import Overloaded
from engine.tokenizer import Tokenizer
from tests.deployments.asgi_client import AsgiCall, call
from tests.deployments.conftest import BuildApp
from tests.deployments.fake_token_source import FakeTokenSource

PATH = "/v1/completions"


def complete(app: Starlette, prompt: Any = "Once upon", **fields: Any) -> AsgiCall:
    return call(app, PATH, {"model": "tiny", "prompt": prompt, **fields})


def test_every_form_of_prompt_reaches_the_engine(
    app: Starlette, source: FakeTokenSource, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("Once upon")
    for prompt, expected in [
        ("Once upon", [ids]),
        (["Once upon", "Once upon"], [ids, ids]),
        (ids, [ids]),
        ([ids, [5]], [ids, [5]]),
    ]:
        source.requests.clear()
        assert complete(app, prompt).status == 200
        assert [request.prompt_token_ids for request in source.requests] == expected


def test_choices_are_numbered_by_prompt_and_n(app: Starlette, source: FakeTokenSource) -> None:
    source.text = ["One.", "Two."].__getitem__
    body = complete(app, ["a", "b", "c"], n=2).json()
    found = [(choice["index"], choice["text"]) for choice in body["choices"]]
    assert found == [(i, ["One.", "Two."][i % 2]) for i in range(6)]
    assert body["usage"]["prompt_tokens"] == 3
    assert len({request.request_id for request in source.requests}) == 3


def test_many_prompts_stream_side_by_side(app: Starlette, source: FakeTokenSource) -> None:
    events = complete(app, ["a", "b"], stream=True).events()
    texts = ["", ""]
    reasons: list[list[str]] = [[], []]
    for event in events:
        assert event["object"] == "text_completion"
        choice = event["choices"][0]
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            reasons[choice["index"]].append(choice["finish_reason"])
    assert texts == ["The capital of France is Paris."] * 2
    assert reasons == [["stop"], ["stop"]]


def test_one_failing_prompt_ends_the_others(app: Starlette, source: FakeTokenSource) -> None:
    source.error = Overloaded("No room.", "Try later.", 2.5)
    source.fail_after = 2
    response = complete(app, ["a", "b", "c"])
    assert response.status == 503
    assert response.headers["retry-after"] == "3"
    assert source.num_open == 0


def test_max_tokens_is_16_unless_told_otherwise(app: Starlette, source: FakeTokenSource) -> None:
    complete(app)
    assert source.requests[0].params.max_tokens == 16


def test_logprobs_have_tokens_alternatives_and_offsets(app: Starlette) -> None:
    whole = complete(app, logprobs=2).json()["choices"][0]
    logprobs = whole["logprobs"]
    assert "".join(logprobs["tokens"]) == whole["text"]
    offsets = logprobs["text_offset"]
    for token, offset in zip(logprobs["tokens"], offsets, strict=True):
        assert whole["text"].startswith(token, offset)
    assert set(logprobs["token_logprobs"]) == {-0.5}
    for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
        assert top[token] == -0.5
    events = complete(app, logprobs=2, stream=True).events()
    parts = [event["choices"][0]["logprobs"] for event in events[:-1]]
    assert [offset for part in parts for offset in part["text_offset"]] == offsets


def test_stop_string_ends_one_choice_and_not_the_other(
    app: Starlette, source: FakeTokenSource, tokenizer: Tokenizer
) -> None:
    source.text = ["The capital of France", "A small model"].__getitem__
    body = complete(app, n=2, stop=["of"], logprobs=0).json()
    stopped, other = body["choices"]
    assert (stopped["text"], stopped["finish_reason"]) == ("The capital ", "stop")
    assert other["text"] == "A small model"
    assert source.aborted == [(source.requests[0].request_id, 0)]
    # Tokens after the stop string are neither counted nor reported.
    used = len(tokenizer.encode("The capital of")) + len(tokenizer.encode("A small model"))
    assert body["usage"]["completion_tokens"] == used
    assert "".join(stopped["logprobs"]["tokens"]) == "The capital of"


def test_stop_string_ends_the_response_without_waiting_for_the_engine(
    app: Starlette, source: FakeTokenSource
) -> None:
    source.text = "The capital of France is Paris."
    body = complete(app, stop=" of", include_stop_str_in_output=True).json()
    assert body["choices"][0]["text"] == "The capital of"
    assert source.aborted == [(source.requests[0].request_id, 0)]
    assert (source.num_open, source.num_closed_early) == (0, 1)


def test_stop_string_never_shows_in_a_stream(app: Starlette, source: FakeTokenSource) -> None:
    source.text = "Wait for it: STOP now"
    events = complete(app, stop="STOP", stream=True).events()
    assert "".join(event["choices"][0]["text"] for event in events) == "Wait for it: "
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "prompt",
    [None, [], "", [[]], 5, True, {}, ["a", 1], [1, "a"], [[1], "a"], [True], [-1], [2**40], [1.5]],
)
def test_prompt_of_no_known_form_is_refused(app: Starlette, prompt: Any) -> None:
    response = complete(app, prompt)
    assert response.status == 400
    assert response.json()["error"]["param"] == "prompt"


def test_number_of_prompts_and_choices_is_bounded(build_app: BuildApp) -> None:
    app = build_app(max_prompts_per_request=3, max_choices_per_request=4)
    assert complete(app, ["a"] * 3).status == 200
    assert complete(app, ["a"] * 4).json()["error"]["param"] == "prompt"
    assert complete(app, ["a"] * 3, n=2).json()["error"]["param"] == "n"


def test_prompt_too_long_is_refused_with_the_numbers(app: Starlette) -> None:
    for prompt in ([5] * 512, "a b " * 300, "x" * 10_000_000):
        response = complete(app, prompt if len(prompt) < 10**6 else prompt[: 3 << 20])
        assert response.status == 400
        error = response.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == "prompt"
        assert "512" in error["message"]


def test_long_text_is_tokenized_off_the_event_loop(
    app: Starlette, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[Any] = []
    to_thread = asyncio.to_thread

    async def spy(function: Any, *args: Any) -> Any:
        threads.append(function)
        return await to_thread(function, *args)

    monkeypatch.setattr(asyncio, "to_thread", spy)
    assert complete(app, ["Once upon a time there was a small model. " * 20] * 9).status == 200
    assert not threads
    assert complete(app, ["Once upon a time there was a small model. " * 20] * 30).status == 200
    assert len(threads) == 1
