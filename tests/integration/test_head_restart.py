"""With Redis the head's GCS may die: nobody is kept waiting, and it takes over where it was."""

import threading
from pathlib import Path

import pytest

from tests.chaos.live_cluster import LiveCluster
from tests.chaos.model import MODEL_NAME, MODEL_OPTIONS
from tests.chaos.namespace_hosts import can_make_hosts
from tests.chaos.redis_server import find_redis_server
from tests.chaos.roles import Role
from tests.integration.serving import wait_until
from tests.integration.streams import Stream

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not can_make_hosts(), reason="makes network namespaces, which root may"),
    pytest.mark.skipif(find_redis_server() is None, reason="needs redis-server: see pyproject"),
]

BODY: dict[str, object] = {
    "model": MODEL_NAME,
    "prompt": list(range(2000, 2040)),
    "max_tokens": 1000,
    "temperature": 0,
    "ignore_eos": True,
}
NUM_WITHOUT_GCS = 2
"""Streams that each endpoint begins and ends while there is no GCS."""
TURN_TIMEOUT_S = 60.0


class Client(threading.Thread):
    """Asks one endpoint for one stream after the other until it is to stop."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.streams: list[Stream] = []
        self._url = url
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.is_set():
            self.streams.append(Stream(self._url, BODY))
            self.streams[-1].wait()

    def wait_turns(self, count: int) -> None:
        """Wait until so many streams have begun since, and with them as many ended."""
        last = len(self.streams) + count
        wait_until(lambda: len(self.streams) >= last, TURN_TIMEOUT_S, f"{count} streams more")

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def ask(url: str) -> str:
    stream = Stream(url, BODY).wait()
    assert stream.is_whole, stream.error
    return stream.text


def test_streams_do_not_notice_that_the_gcs_dies_and_comes_back(chaos_model: Path) -> None:
    with LiveCluster(chaos_model, *MODEL_OPTIONS, num_frontends=2, has_redis=True) as cluster:
        before = ask(cluster.url(1))
        ranks = cluster.processes(Role.RANK)
        roles = (Role.FRONTEND, Role.CONTROLLER, Role.RAYLET)
        others = [process for role in roles for process in cluster.processes(role)]
        clients = [Client(url) for url in cluster.urls]
        try:
            for client in clients:
                client.wait_turns(1)
            start_gcs = cluster.kill_gcs()
            for client in clients:
                client.wait_turns(NUM_WITHOUT_GCS + 1)  # one was under way
            assert not cluster.processes(Role.GCS)
            start_gcs()
            for client in clients:
                client.wait_turns(NUM_WITHOUT_GCS)
        finally:
            for client in clients:
                client.stop()
        streams = [stream for client in clients for stream in client.streams]
        assert [stream.error for stream in streams if not stream.is_whole] == []
        assert {stream.text for stream in streams} == {before}
        assert cluster.processes(Role.RANK) == ranks
        cluster.kill(ranks[0])
        wait_until(lambda: len(cluster.processes(Role.RANK)) == 2, 60, "a rank for the lost one")
        cluster.wait_ready(2)
        assert [ask(url) for url in cluster.urls] == [before] * 2
        assert all(process.is_running() for process in others)
        wait_until(cluster.is_idle, 10, "nothing is left")
