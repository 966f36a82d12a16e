"""Thousands of requests that no client should send, against a real service.

Each gets a 4xx that says what is wrong, or an answer where it asks for one after all, or its
connection ends. None gets a 5xx, none hangs, and nothing of any is left behind.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.hostile_bodies import (
    PATHS,
    TEXT,
    VALID,
    Hostile,
    hostile_requests,
    oversize_requests,
    post,
)
from tests.integration.raw_http import Answer, Connection
from tests.integration.serving import Serving, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_REQUESTS = 5_000
NUM_CONNECTIONS = 24
NUM_DISCONNECTS = 300
FAILED = "not as it should:"
NUM_SLOW = 150
"""Clients that drip headers, and as many that drip bodies."""


@pytest.fixture(scope="module")
def tiny_serving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A small model that answers at once."""
    log = tmp_path_factory.mktemp("serve") / "log"
    options = ("--max-model-len", "256", "--kv-cache-memory", "64MiB", "--log-format", "json")
    serving = Serving(tiny_model, *options, log=log)
    try:
        serving.wait_ready()
        yield serving
    finally:
        serving.stop()


@pytest.fixture
def serving(tiny_serving: Serving) -> Iterator[Serving]:
    """The service, which afterwards holds nothing, has logged no fault and answers as before."""
    before = ask(tiny_serving)
    yield tiny_serving
    wait_until(lambda: tiny_serving.num_requests() == 0, 20, "every request has ended")
    wait_until(lambda: tiny_serving.num_used_blocks() == 0, 5, "all blocks back")
    for model in tiny_serving.models():
        admission = model["admission"]
        assert admission["num_held_requests"] == admission["num_placed_requests"] == 0
    assert ask(tiny_serving) == before
    faults = [each for each in tiny_serving.log_records("pageray_") if each["levelname"] == "ERROR"]
    assert not faults
    assert 'status="5' not in tiny_serving.client.get("/metrics").text


def ask(serving: Serving) -> str:
    body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    response = serving.client.post("/v1/completions", json=body)
    assert response.status_code == 200
    text: str = response.json()["choices"][0]["text"]
    return text


def outcome(sent: Hostile, answer: Answer | None) -> str:
    """What became of a request, in a word or two; fails where that should not be."""
    if answer is None:
        assert not sent.is_http or sent.kind == "oversize"
        return "closed"
    assert answer.status == 200 or 400 <= answer.status < 500
    content_type = answer.headers.get("content-type", "")
    if not sent.is_http and content_type.startswith(("text/html", "text/plain")):
        return f"{answer.status} of HAProxy or uvicorn"
    if answer.status != 200:
        assert content_type == "application/json"
        error = json.loads(answer.body)["error"]
        assert list(error) == ["message", "type", "param", "code"]
        cause, _, fix = error["message"].partition(". ")
        assert cause
        assert fix
    return str(answer.status)


async def exchange(connection: Connection, sent: Hostile) -> str:
    """Send a request and look at what comes of it."""
    answer: Answer | str | None = "sent in part"
    try:
        with suppress(OSError):  # answered and closed before all of it was sent
            await connection.send(sent.data)
            if not sent.is_http:
                await connection.finish()  # it may wait for what never comes
        answer = "no answer"
        answer = await connection.answer()
        return outcome(sent, answer)
    except (AssertionError, TimeoutError, ValueError) as error:
        await connection.close()
        return f"{FAILED} {sent.data[:200]!r} -> {answer!r:.300} ({error!r:.100})"
    finally:
        if not sent.is_http:
            await connection.close()


async def run_all(port: int, requests: Iterator[Hostile]) -> Counter[tuple[str, str]]:
    """Send all of them over a few connections; return what became of each kind."""
    outcomes: Counter[tuple[str, str]] = Counter()

    async def work() -> None:
        connection = Connection(port)
        for sent in requests:
            outcomes[sent.kind, await exchange(connection, sent)] += 1
        await connection.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(NUM_CONNECTIONS):
            tasks.create_task(work())
    failures = [f"{kind} {what}" for kind, what in outcomes if what.startswith(FAILED)]
    assert not failures, "\n".join(failures)
    return outcomes


def test_every_hostile_request_is_refused_with_a_reason(serving: Serving) -> None:
    outcomes = asyncio.run(run_all(serving.port, hostile_requests(1, NUM_REQUESTS)))
    assert outcomes.total() == NUM_REQUESTS
    refused = {kind for kind, what in outcomes if what == "400"}
    assert refused >= {"mutated", "truncated", "wrong_types", "literals", "deep", "noise"}
    assert outcomes["mutated", "200"], "some mutations leave a body valid"


def test_oversize_bodies_are_refused(serving: Serving) -> None:
    outcomes = asyncio.run(run_all(serving.port, iter(oversize_requests())))
    assert {what for _, what in outcomes} <= {"413", "closed"}
    assert outcomes["oversize", "413"]


async def leave_somewhere(port: int, rng: random.Random) -> None:
    """Send a request, or a part, and hang up: before its end, after it, or in its stream."""
    path = rng.choice(PATHS)
    body = dict(VALID[path])
    if path.startswith("/v1"):
        body |= {"max_tokens": 150, "stream": rng.random() < 0.7}
    data = post(path, json.dumps(body).encode())
    connection = Connection(port)
    where = rng.randrange(3)
    await connection.send(data[: rng.randrange(len(data))] if where == 0 else data)
    if where == 1:
        await asyncio.sleep(rng.random() * 0.05)
    elif where == 2:
        assert (await connection.first_bytes()).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(rng.random() * 0.05)
    await connection.close(abort=rng.random() < 0.5)


def test_clients_that_hang_up_leave_nothing_behind(serving: Serving) -> None:
    rng = random.Random(2)

    async def run() -> None:
        for _ in range(NUM_DISCONNECTS // 20):
            await asyncio.gather(*(leave_somewhere(serving.port, rng) for _ in range(20)))

    asyncio.run(run())


def test_clients_that_drip_do_not_keep_others_from_their_answers(serving: Serving) -> None:
    body = json.dumps(VALID[TEXT]).encode()
    data = post(TEXT, body)
    head_end = data.index(b"\r\n\r\n") + 4

    async def drip(start: int, done: asyncio.Event) -> Connection:
        connection = Connection(serving.port)
        await connection.send(data[:start])
        for i in range(start, len(data) - 1):
            await connection.send(data[i : i + 1])
            if done.is_set():
                break
            await asyncio.sleep(0.2)
        return connection

    async def run() -> None:
        done = asyncio.Event()
        slow = [
            asyncio.create_task(drip(start, done))
            for start in (5, head_end)
            for _ in range(NUM_SLOW)
        ]
        await asyncio.sleep(1)
        quick = Connection(serving.port)
        async with asyncio.timeout(15):
            for _ in range(50):
                await quick.send(data)
                answer = await quick.answer()
                assert answer is not None
                assert answer.status == 200
        done.set()
        await quick.close()
        for connection in await asyncio.gather(*slow):
            await connection.close(abort=True)

    asyncio.run(run())
