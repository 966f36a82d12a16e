"""Live: ranks are killed when their streams are so far, and no client sees it.

That every single index is right is for tests/deployments/test_every_index.py, on real engines too.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.answer import Answer
from tests.chaos.books import leaks
from tests.chaos.load import num_attempts, send, undisturbed
from tests.chaos.local_cluster import LocalCluster
from tests.chaos.model import MODEL_NAME
from tests.chaos.oracle import OK, judge
from tests.chaos.requests import COMPLETIONS, ChaosRequest
from tests.integration.serving import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

BODY = {
    "model": MODEL_NAME,
    "max_tokens": 300,
    "stream": True,
    "temperature": 0,
    "ignore_eos": True,
    "stream_options": {"include_usage": True},
    "logprobs": 0,
}
EVERYTHING = {
    "temperature": 1.0,
    "top_p": 0.95,
    "seed": 5,
    "logprobs": 2,
    "n": 2,
    "min_tokens": 200,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.3,
    "stop": ["this is never said"],
}
REQUESTS = [
    ChaosRequest(
        f"{i}", COMPLETIONS, {**BODY, **fields, "prompt": list(range(2000 * i, 2000 * i + 9))}
    )
    for i, fields in enumerate([{}, EVERYTHING, {}, EVERYTHING], 1)
]
REBUILD_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def cluster(chaos_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    log = tmp_path_factory.mktemp("serve") / "log"
    # In turns, so that each of two replicas has half of the streams.
    turns = ("--router-policy", "round_robin")
    with LocalCluster(chaos_model, log, *turns, num_frontends=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected(cluster: LocalCluster) -> dict[str, Answer]:
    return asyncio.run(undisturbed(cluster.urls[0], REQUESTS))


async def answers_with_kill(url: str, rank: int, index: int) -> list[Answer]:
    """Kill a rank as soon as a stream has so many tokens; one of two replicas has it."""
    is_killed = False

    def count(answer: Answer) -> None:
        nonlocal is_killed
        if not is_killed and len(answer.choices[0].logprobs) >= index:
            is_killed = True
            os.kill(rank, signal.SIGKILL)

    asked = [send(url, request, on_piece=count) for request in REQUESTS]
    answers = await asyncio.gather(*asked)
    assert is_killed
    return answers


@pytest.mark.parametrize("index", [1, 16, 17, 60])
def test_a_rank_is_killed_when_its_streams_have_so_many_tokens(
    cluster: LocalCluster, expected: dict[str, Answer], index: int
) -> None:
    wait_until(cluster.is_whole, REBUILD_TIMEOUT_S, "whole")
    [rank, _] = cluster.processes("rank")
    url = cluster.urls[0]

    async def run() -> list[int | None]:
        answers = await answers_with_kill(url, rank.pid, index)
        for answer in answers:
            assert judge(answer, expected[answer.request.name]) == OK
        return [await num_attempts(url, answer.id) for answer in answers]

    attempts = asyncio.run(run())
    assert sorted(attempts, key=str) == [1, 1, 2, 2], "half of them were on that rank"

    def has_nothing_left() -> bool:
        return not leaks(cluster.statuses(), num_frontends=cluster.num_frontends)

    wait_until(has_nothing_left, 10, "nothing left")
