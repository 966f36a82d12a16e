"""Hosts join and leave under load: replicas move, and every request is answered alike."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.chaos.live_cluster import HEAD, LiveCluster
from tests.chaos.model import MODEL_NAME, MODEL_OPTIONS
from tests.chaos.namespace_hosts import can_make_hosts
from tests.chaos.roles import Role
from tests.integration.serving import wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_make_hosts(), reason="makes network namespaces, which root may"),
]

BODY = {
    "model": MODEL_NAME,
    "prompt": list(range(2000, 2040)),
    "max_tokens": 400,
    "temperature": 0,
    "ignore_eos": True,
}


@contextmanager
def asked(url: str, num_clients: int = 4) -> Iterator[list[httpx2.Response]]:
    """So many clients, each with one request after another, while it is entered."""
    over = threading.Event()
    answers: list[httpx2.Response] = []

    def ask() -> None:
        with httpx2.Client(timeout=120, trust_env=False) as client:
            while not over.is_set():
                answers.append(client.post(f"{url}/v1/completions", json=BODY))

    with ThreadPoolExecutor(num_clients) as pool:
        clients = [pool.submit(ask) for _ in range(num_clients)]
        try:
            yield answers
        finally:
            over.set()
    for client in clients:
        client.result()


def test_replicas_move_with_the_hosts_and_no_request_is_lost(chaos_model: Path) -> None:
    with LiveCluster(
        chaos_model, *MODEL_OPTIONS, num_hosts=3, num_joined=1, num_replicas=2, num_ready=1
    ) as cluster:
        [frontend] = cluster.processes(Role.FRONTEND, HEAD)
        with asked(cluster.url(HEAD)) as answers:
            # There is room for the second replica only where a host joins.
            cluster.rejoin(2)
            cluster.wait_ready(2)
            assert len(cluster.processes(Role.RANK, 2)) == 1
            wait_until(lambda: cluster.num_requests() > 0, 10, "load")
            cluster.rejoin(3)
            cluster.drain(2)
            assert not cluster.processes(Role.RANK, 2)
            wait_until(lambda: len(cluster.processes(Role.RANK, 3)) == 1, 60, "one on host 3")
            cluster.hosts.end_processes(2)
            cluster.wait_ready(2)
            num_before = len(answers)
            wait_until(lambda: len(answers) > num_before + 8, 60, "two rounds of answers")
        assert frontend.is_running()
        texts = [answer.raise_for_status().json()["choices"][0]["text"] for answer in answers]
        assert len(set(texts)) == 1
        wait_until(cluster.is_idle, 10, "nothing is left")
