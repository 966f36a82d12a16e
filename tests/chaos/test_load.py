"""Clients tell the end of an answer from a cut, and keep coming."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.chaos.answer import Answer
from tests.chaos.load import Load, send, undisturbed
from tests.chaos.oracle import Verdict, judge
from tests.chaos.requests import ChaosRequest, mix

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
REQUESTS = [request for request in mix(1, 12, "m") if request.name == "2_chat_greedy"]


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def events(text: str = "a") -> list[bytes]:
    """The answer to a chat, event by event, as chunks of HTTP."""
    envelope = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [
        {"index": 0, "delta": {"role": "assistant"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"},
    ]
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    chunks = [{**envelope, "choices": [choice]} for choice in choices]
    chunks += [{**envelope, "choices": [], "usage": usage}]
    told = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks]
    return [chunk(event) for event in [*told, b"data: [DONE]\n\n"]]


WHOLE = HEAD + b"".join(events()) + b"0\r\n\r\n"
Answerer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers in turn, the last one again and again; the address, and what came."""
    came: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        came.append(await reader.readexactly(length))
        writer.write(answers[min(len(came), len(answers)) - 1])
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", came


def answer_to(data: bytes) -> Answer:
    async def run() -> Answer:
        async with server(data) as (url, came):
            answer = await send(url, REQUESTS[0])
            assert json.loads(came[0]) == REQUESTS[0].body
            return answer

    return asyncio.run(run())


def test_a_whole_answer_has_no_cut_and_times_of_its_tokens() -> None:
    answer = answer_to(WHOLE)
    assert judge(answer, None).verdict is Verdict.OK
    assert (answer.choices[0].text, answer.id, answer.num_done) == ("a", "c", 1)
    assert len(answer.token_times_s) == 1
    assert answer.started_s <= answer.token_times_s[0] <= answer.ended_s


@pytest.mark.parametrize("num_bytes", range(0, len(WHOLE) - 1, 7))
def test_an_answer_that_ends_anywhere_before_its_end_is_cut(num_bytes: int) -> None:
    answer = answer_to(WHOLE[:num_bytes])
    assert answer.cut


def test_a_last_chunk_that_is_missing_is_a_cut_even_after_the_last_event() -> None:
    answer = answer_to(HEAD + b"".join(events()))
    assert answer.num_done == 1
    assert judge(answer, None).verdict is Verdict.LOST


def test_nobody_who_listens_is_a_cut() -> None:
    answer = asyncio.run(send("http://127.0.0.1:1", REQUESTS[0]))
    assert "no connection" in answer.cut
    assert answer.status is None


def test_an_error_is_told_from_one_of_somebody_else() -> None:
    ours = b'{"error": {"message": "overloaded", "type": "x"}}'
    for body, is_cut in ((ours, False), (b"<html>", True)):
        head = b"HTTP/1.1 503 No\r\ncontent-length: %d\r\n\r\n" % len(body)
        answer = answer_to(head + body)
        assert (answer.status, bool(answer.cut), bool(answer.error)) == (503, is_cut, True)


def test_a_closed_loop_keeps_its_clients_and_judges_every_answer() -> None:
    wrong = HEAD + b"".join(events("b")) + b"0\r\n\r\n"

    async def run() -> list[Verdict]:
        async with server(WHOLE, WHOLE, wrong, WHOLE) as (url, came):
            expected = await undisturbed(url, REQUESTS)
            assert list(expected) == ["2_chat_greedy"]
            load = Load([url], REQUESTS, expected, seed=1)
            running = asyncio.create_task(load.run_closed(3))
            while len(came) < 30:
                await asyncio.sleep(0.01)
                assert load.num_open <= 3
            load.finish()
            await running
            assert len(load.outcomes) == len(came) - 1
            return [outcome.judgement.verdict for outcome in load.outcomes]

    verdicts = asyncio.run(run())
    assert verdicts.count(Verdict.WRONG) == 1
    assert verdicts.count(Verdict.OK) == len(verdicts) - 1


def test_half_of_the_requests_go_to_a_frontend_of_their_choice() -> None:
    async def run() -> list[bool]:
        async with server(WHOLE) as (url, _), server(WHOLE) as (own_url, _):
            load = Load([url], REQUESTS, {}, seed=1)
            load.frontend_urls = [own_url]
            running = asyncio.create_task(load.run_closed(2))
            while len(load.outcomes) < 40:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.01)
            load.finish()
            await running
            for each in load.outcomes:
                assert each.url == (own_url if each.is_direct else url)
            return [each.is_direct for each in load.outcomes]

    found = asyncio.run(run())
    assert 0.2 < found.count(True) / len(found) < 0.8


def test_an_open_loop_sends_at_its_rate() -> None:
    async def run() -> int:
        async with server(WHOLE) as (url, _):
            load = Load([url], REQUESTS, {}, seed=1)
            running = asyncio.create_task(load.run_open(100.0))
            await asyncio.sleep(0.5)
            load.finish()
            await running
            return len(load.outcomes)

    assert 20 <= asyncio.run(run()) <= 80


def test_who_was_open_at_a_fault_is_asked_how_often_it_moved() -> None:
    decisions = b'{"decisions": [{}, {}]}'
    why = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(decisions) + decisions

    async def run() -> int | None:
        async with server(WHOLE, why, WHOLE) as (url, _):
            load = Load([url], REQUESTS, {}, seed=1, is_disturbed=lambda _: not load.outcomes)
            running = asyncio.create_task(load.run_closed(1))
            while len(load.outcomes) < 2:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.01)
            load.finish()
            await running
            assert load.outcomes[1].num_attempts is None
            return load.outcomes[0].num_attempts

    assert asyncio.run(run()) == 2


def test_a_mix_is_the_same_for_a_seed_and_has_requests_of_every_kind() -> None:
    requests = mix(7, 48, "m")
    assert requests == mix(7, 48, "m")
    assert requests != mix(8, 48, "m")
    assert len({json.dumps(request.body) for request in requests}) == 48

    def some(wanted: Callable[[ChaosRequest], object]) -> bool:
        return any(map(wanted, requests)) and not all(map(wanted, requests))

    for name in ("seed", "stop", "min_tokens", "logit_bias", "presence_penalty", "n"):
        assert some(lambda request, name=name: name in request.body)  # type: ignore[misc]
    for wanted in ("is_chat", "streams", "is_repeatable", "has_usage", "has_logprobs"):
        assert some(lambda request, wanted=wanted: getattr(request, wanted))  # type: ignore[misc]
    lengths = [request.max_tokens for request in requests]
    assert 20 <= min(lengths) < 50
    assert 200 < max(lengths) <= 300
