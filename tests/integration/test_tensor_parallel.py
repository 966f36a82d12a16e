"""A tensor-parallel group of two under Ray lives and dies as one."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.integration.serving import Serving, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROMPT = list(range(2000, 2040))
BODY = {"model": "tiny", "prompt": PROMPT, "max_tokens": 16, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def serving(tiny_model: Path, tmp_path: Path) -> Iterator[Serving]:
    """One group of two ranks that runs one sequence at a time."""
    serving = Serving(
        tiny_model,
        *("--served-model-name", "tiny", "--tensor-parallel-size", "2"),
        *("--max-num-seqs", "1", "--kv-cache-memory", "32MiB"),
        log=tmp_path / "log",
    )
    try:
        serving.wait_ready()
        yield serving
    finally:
        serving.stop()


def test_killed_follower_takes_its_group_along_and_a_new_group_serves(serving: Serving) -> None:
    answer = complete(serving)
    [epoch] = [replica["epoch"] for replica in serving.replicas()]
    leader, follower = find_ranks(serving)
    group = [leader, follower, *serving.titled("ray::ServeReplica:pageray:Replica")]
    assert len(group) == 3
    started = {**BODY, "max_tokens": 1000, "stream": True}
    with ThreadPoolExecutor() as pool:
        with serving.client.stream("POST", "/v1/completions", json=started) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: {")
            # The only seat is taken, so these have no token yet.
            waiting = [pool.submit(complete, serving) for _ in range(2)]
            wait_until(lambda: serving.num_open() == 3, 10, "requests that run or wait")
            follower.kill()
            killed_s = time.monotonic()
            # The stream that had begun goes on in the new group, and is nobody's loss.
            texts = pool.submit(lambda: [line for line in lines if line.startswith("data: ")])
            wait_until(lambda: serving.num_used_blocks() > 0 and is_new(serving, epoch), 15, "back")
            assert time.monotonic() - killed_s < 15
            rest = texts.result()
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert rest[-1] == "data: [DONE]"
        assert has_answered_chat(serving)
        assert [future.result() for future in waiting] == [answer] * 2
    _, alive = psutil.wait_procs(group, timeout=5)
    assert not alive
    assert len(serving.ranks()) == 2
    assert len(serving.titled("ray::ServeReplica:pageray:Replica")) == 1
    wait_until(lambda: serving.num_used_blocks() == 0, 5, "no leaked block")
    assert [replica["epoch"] for replica in serving.replicas()] != [epoch]


def complete(serving: Serving) -> str:
    """The text of a completion that is the same whoever computes it."""
    response = serving.client.post("/v1/completions", json=BODY)
    text: str = response.raise_for_status().json()["choices"][0]["text"]
    return text


def is_new(serving: Serving, epoch: object) -> bool:
    """Whether there is a group, and not the one of this epoch."""
    epochs = [replica["epoch"] for replica in serving.replicas()]
    return bool(epochs) and epoch not in epochs


def has_answered_chat(serving: Serving) -> bool:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    return serving.client.post("/v1/chat/completions", json=body).status_code == 200


def find_ranks(serving: Serving) -> tuple[psutil.Process, psutil.Process]:
    """Rank 0 and the other; frontends are connected to rank 0 alone, where tokens come from."""
    [frontend] = serving.titled("ray::ServeReplica:pageray:Frontend")
    peers = {link.raddr.port for link in frontend.net_connections("tcp") if link.raddr}
    listening = [
        {link.laddr.port for link in rank.net_connections("tcp") if link.status == "LISTEN"}
        for rank in serving.ranks()
    ]
    [leader, follower] = sorted(
        zip(serving.ranks(), listening, strict=True), key=lambda rank: not rank[1] & peers
    )
    assert leader[1] & peers
    assert not follower[1] & peers
    return leader[0], follower[0]
