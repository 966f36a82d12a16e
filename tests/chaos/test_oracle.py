"""The oracle lets a right answer pass and nothing else, from the bytes on."""

import json
from typing import Any

import pytest

from tests.chaos.answer import Answer
from tests.chaos.oracle import Verdict, judge
from tests.chaos.requests import CHAT, COMPLETIONS, ChaosRequest

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
USAGE_DETAILS = {**USAGE, "prompt_tokens_details": {"cached_tokens": 0}}


def request(**fields: Any) -> ChaosRequest:
    body: dict[str, Any] = {
        "max_tokens": 2,
        "stream": True,
        "temperature": 0,
        "n": 2,
        "logprobs": 0,
    }
    body |= {"stream_options": {"include_usage": True}}
    return ChaosRequest("r", COMPLETIONS, {**body, **fields})


def event(choices: list[dict[str, Any]], **fields: Any) -> bytes:
    chunk = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**chunk, "choices": choices, **fields}).encode() + b"\n\n"


def token(index: int, text: str, logprob: float = -1.0) -> bytes:
    told = {
        "tokens": [text],
        "token_logprobs": [logprob],
        "top_logprobs": [{text: logprob}],
        "text_offset": [0],
    }
    return event([{"index": index, "text": text, "logprobs": told, "finish_reason": None}])


def end(index: int, reason: str = "length") -> bytes:
    return event([{"index": index, "text": "", "logprobs": None, "finish_reason": reason}])


def usage(**changes: int) -> bytes:
    return event([], usage={**USAGE_DETAILS, **changes})


def stream() -> list[bytes]:
    """A whole answer of two choices: 'ab' and 'cd'."""
    parts = [token(0, "a"), token(1, "c"), token(0, "b"), end(0), token(1, "d"), end(1)]
    return [*parts, usage(), DONE]


def answer(parts: list[bytes], asked: ChaosRequest | None = None, **fields: Any) -> Answer:
    found = Answer(asked or request(), 0.0, status=200, **fields)
    for i, part in enumerate(parts):
        found.feed(part, float(i))
    found.close()
    return found


EXPECTED = answer(stream())


def verdict(parts: list[bytes], **fields: Any) -> Verdict:
    return judge(answer(parts, **fields), EXPECTED).verdict


def replaced(index: int, *parts: bytes) -> list[bytes]:
    whole = stream()
    return [*whole[:index], *parts, *whole[index + 1 :]]


def test_the_same_answer_is_right_however_it_is_cut_up() -> None:
    whole = b"".join(stream())
    pieces = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    assert judge(answer(pieces), EXPECTED).verdict is Verdict.OK
    both = stream()
    both[1], both[2] = both[2], both[1]  # choices may come in any order
    assert verdict(both) is Verdict.OK


def test_cached_tokens_may_differ() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 2}}
    assert verdict(replaced(6, event([], usage={**USAGE, **details}))) is Verdict.OK


def test_more_cached_tokens_than_the_prompt_has_are_wrong() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 4}}
    assert verdict(replaced(6, event([], usage={**USAGE, **details}))) is Verdict.WRONG


@pytest.mark.parametrize("index", range(8))
def test_an_event_that_is_missing_is_noticed(index: int) -> None:
    is_end = stream()[index] in (end(0), end(1), usage(), DONE)
    assert verdict(replaced(index)) is (Verdict.LOST if is_end else Verdict.WRONG)


@pytest.mark.parametrize("index", range(8))
def test_an_event_that_comes_twice_is_noticed(index: int) -> None:
    twice = replaced(index, stream()[index], stream()[index])
    assert verdict(twice) is Verdict.DUPLICATED


@pytest.mark.parametrize("count", range(8))
def test_a_stream_that_ends_early_is_lost(count: int) -> None:
    assert verdict(stream()[:count]) is Verdict.LOST
    assert verdict(stream()[:count], cut="reset") is Verdict.LOST
    assert verdict([*stream()[:count], event([], error={"message": "gone"})]) is Verdict.LOST


@pytest.mark.parametrize(
    ("index", "instead"),
    [
        (0, token(0, "x")),
        (4, token(1, "x")),
        (2, token(0, "b", -1.25)),
        (3, end(0, "stop")),
        (5, end(1, "stop")),
        (6, usage(completion_tokens=5)),
        (6, usage(prompt_tokens=4)),
        (6, usage(total_tokens=8)),
    ],
)
def test_any_difference_is_wrong(index: int, instead: bytes) -> None:
    assert verdict(replaced(index, instead)) is Verdict.WRONG


def test_text_that_was_wrong_before_the_stream_broke_is_wrong_and_not_lost() -> None:
    assert verdict([token(0, "a"), token(0, "x")], cut="reset") is Verdict.WRONG


def test_tokens_that_come_again_in_the_middle_are_duplicated() -> None:
    assert verdict(replaced(2, token(0, "a"), token(0, "b"))) is Verdict.DUPLICATED


@pytest.mark.parametrize(
    "extra",
    [
        b"data: {oops}\n\n",
        b"oops: 1\n\n",
        b"data: {}\ndata: {}\n\n",
        event([]).replace(b", ", b",\n", 1),
        event([], id="other"),
        event([{"index": 0, "text": "", "finish_reason": None}]),
        token(2, "x"),
    ],
)
def test_what_no_client_should_have_to_expect_is_wrong(extra: bytes) -> None:
    assert verdict([extra, *stream()]) is Verdict.WRONG
    assert verdict([*stream()[:3], extra, *stream()[3:]]) is Verdict.WRONG


def test_bytes_after_the_end_are_wrong() -> None:
    assert verdict([*stream(), b"data: "]) is Verdict.WRONG
    assert verdict([*stream(), event([])]) is Verdict.WRONG


def test_nothing_comes_behind_the_end_that_it_belongs_before() -> None:
    asked = ChaosRequest("r", CHAT, {"max_tokens": 9, "stream": True, "temperature": 1})
    role, text = chat_event({"role": "assistant"}), chat_event({"content": "a"})
    last, extra = chat_event({}, "stop"), event([], object="chat.completion.chunk")
    told = event([], object="chat.completion.chunk", usage=USAGE_DETAILS)
    right = [role, text, last, told, DONE]
    assert judge(answer(right, asked), None).verdict is Verdict.OK
    for wrong in (
        [role, text, last, text, told, DONE],
        [role, text, last, told, extra, DONE],
        [role, text, last, DONE, extra],
    ):
        assert judge(answer(wrong, asked), None).verdict is Verdict.WRONG


def test_a_refusal_is_lost_and_one_that_is_not_ours_counts_as_a_cut() -> None:
    refused = Answer(request(), 0.0, status=503)
    refused.refuse(b'{"error": {"message": "overloaded"}}')
    assert judge(refused, EXPECTED).verdict is Verdict.LOST
    assert not refused.cut
    proxy = Answer(request(), 0.0, status=503)
    proxy.refuse(b"<html>no server</html>")
    assert judge(proxy, EXPECTED).verdict is Verdict.LOST
    assert proxy.cut


def chat_event(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return event([choice], object="chat.completion.chunk")


def test_a_message_has_one_role_and_it_comes_first() -> None:
    asked = ChaosRequest("r", CHAT, {"max_tokens": 9, "stream": True, "temperature": 0})
    role, text = chat_event({"role": "assistant", "content": ""}), chat_event({"content": "a"})
    last = chat_event({}, "stop")
    right = answer([role, text, last, DONE], asked)
    assert judge(right, right).verdict is Verdict.OK
    for parts, expected in (
        ([role, role, text, last, DONE], Verdict.DUPLICATED),
        ([text, last, DONE], Verdict.WRONG),
        ([text, role, last, DONE], Verdict.WRONG),
        ([role, text, text, last, DONE], Verdict.DUPLICATED),
    ):
        assert judge(answer(parts, asked), right).verdict is expected


def test_a_whole_answer_is_compared_like_a_stream() -> None:
    asked = request(stream=False, n=1, logprobs=False)

    def whole(text: str, reason: str = "length") -> Answer:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        body = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
        found = Answer(asked, 0.0, status=200)
        found.take_whole(json.dumps({**body, "choices": [choice], "usage": USAGE}).encode(), 1.0)
        return found

    assert judge(whole("ab"), whole("ab")).verdict is Verdict.OK
    assert judge(whole("ax"), whole("ab")).verdict is Verdict.WRONG
    assert judge(whole("abab"), whole("ab")).verdict is Verdict.DUPLICATED
    assert judge(whole("ab", "stop"), whole("ab")).verdict is Verdict.WRONG


def test_an_answer_that_is_another_each_time_has_to_hold_together() -> None:
    def alone(parts: list[bytes]) -> Verdict:
        return judge(answer(parts), None).verdict

    assert alone(stream()) is Verdict.OK
    assert alone(replaced(0, token(0, "x"))) is Verdict.OK
    assert alone(replaced(0)) is Verdict.WRONG  # a token is missing
    assert alone(replaced(0, token(0, "a"), token(0, "a"))) is Verdict.DUPLICATED
    assert alone(replaced(3, end(0, "abort"))) is Verdict.WRONG
    assert alone(replaced(6, usage(completion_tokens=5))) is Verdict.WRONG
    assert alone(stream()[:-1]) is Verdict.LOST
