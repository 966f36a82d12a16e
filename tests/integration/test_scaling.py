"""Replicas on live Ray come with the load and go with it, down to none, and no request fails."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.serving import Serving, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LEAN = (
    *("--kv-cache-memory", "64MiB", "--num-threads", "1", "--max-model-len", "512"),
    "--deterministic",
)
BODY = {
    "model": "smollm2",
    "prompt": "The capital of France is",
    "max_tokens": 48,
    "temperature": 0,
    "ignore_eos": True,
}


@contextmanager
def served(log: Path, *options: str) -> Iterator[Serving]:
    serving = Serving("smollm2", *LEAN, *options, log=log)
    try:
        serving.wait_ready()
        serving.wait_replicas(1)
        yield serving
    finally:
        serving.stop()


class Load:
    """So many clients, each with one request after another, while it is entered."""

    def __init__(self, serving: Serving, num_clients: int) -> None:
        self._url = serving.url
        self._num_clients = num_clients
        self._stop = threading.Event()
        self.answers: list[httpx2.Response] = []

    def __enter__(self) -> "Load":
        self._pool = ThreadPoolExecutor(self._num_clients)
        self._clients = [self._pool.submit(self._ask) for _ in range(self._num_clients)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()

    def _ask(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=120) as client:
            while not self._stop.is_set():
                self.answers.append(client.post("/v1/completions", json=BODY))


def decisions(serving: Serving) -> list[str]:
    """What the autoscaler has logged, from the arrow on."""
    logs = serving.folder.glob("ray/session_2*/logs/serve/controller_*.log")
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return [line.partition(": replicas ")[2] for line in lines if ": replicas " in line]


def text(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert answer["usage"]["completion_tokens"] == 48
    found: str = answer["choices"][0]["text"]
    return found


@pytest.mark.usefixtures("smollm2_path")
def test_three_replicas_under_load_and_one_afterwards(tmp_path: Path) -> None:
    options = ("--replicas", "1:3", "--max-num-seqs", "4", "--scale-down-delay", "5")
    with served(tmp_path / "log", *options) as serving:
        with Load(serving, 11) as high:
            serving.wait_replicas(3)
            num_before = len(high.answers)
            wait_until(lambda: len(high.answers) > num_before + 22, 60, "two rounds of answers")
        # One client goes on, so that replicas drain beside requests.
        with Load(serving, 1) as low:
            serving.wait_replicas(1)
            wait_until(lambda: len(serving.ranks()) == 1, 30, "ranks of one replica")
        assert len({text(answer) for answer in high.answers + low.answers}) == 1
        made = decisions(serving)
        assert made[0].startswith("1 -> ")
        assert "seats" in made[0]
        assert [line[:14] for line in made[-2:]] == ["3 -> 2 (remova", "2 -> 1 (remova"]


@pytest.mark.usefixtures("smollm2_path")
def test_none_runs_while_nobody_asks_and_the_first_request_wakes_one(tmp_path: Path) -> None:
    with served(tmp_path / "log", "--replicas", "0:1", "--scale-to-zero-delay", "4") as serving:
        before = text(serving.client.post("/v1/completions", json=BODY))
        for _ in range(2):
            wait_until(lambda: not serving.ranks(), 60, "no rank")
            wait_until(lambda: not serving.replicas(), 10, "no replica")
            for path in ("/health", "/ready", "/v1/models"):
                assert serving.client.get(path).status_code == 200
            started = time.monotonic()
            with ThreadPoolExecutor(3) as pool:
                posts = [
                    pool.submit(serving.client.post, "/v1/completions", json=BODY) for _ in "abc"
                ]
            assert {text(post.result()) for post in posts} == {before}
            assert time.monotonic() - started < 60
        made = decisions(serving)
        assert [line[:6] for line in made] == ["1 -> 0"] * 2
