"""A new version is deployed over a running one, whose streams go on."""

import threading
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.integration.deploying import deploy, is_ready
from tests.integration.serving import free_port, wait_until
from tests.integration.streams import Stream

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


def body(max_tokens: int) -> dict[str, object]:
    return {"prompt": "Once upon a time", "max_tokens": max_tokens, "ignore_eos": True, "seed": 1}


def replica_ids(client: httpx2.Client) -> set[str]:
    """Those that a frontend is connected to."""
    (model,) = client.get("/status").json()["models"]
    return {replica["replica_id"] for replica in model["replicas"] if replica["connected"]}


class Asking(threading.Thread):
    """A client that asks one short thing after the other."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.answers: list[Stream] = []
        self._url = url
        self._stop_asking = threading.Event()
        self.start()

    def run(self) -> None:
        """Ask until stopped."""
        while not self._stop_asking.wait(0.1):
            self.answers.append(Stream(self._url, body(8)).wait())

    def stop(self) -> None:
        """Have it stop, and wait for its last answer."""
        self._stop_asking.set()
        self.join()


@pytest.mark.usefixtures("smollm2_path")
def test_streams_go_on_while_everything_is_replaced(dashboard: str, tmp_path: Path) -> None:
    port = free_port()
    options = [
        *("smollm2", "--replicas", "2", "--kv-cache-memory", "256MiB", "--drain-timeout", "2"),
        *("--deterministic", "--dtype", "float32", "--port", str(port), "--host", "127.0.0.1"),
    ]
    deploy(dashboard, tmp_path, *options)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        wait_until(partial(is_ready, client), 120, "ready")
        wait_until(lambda: len(replica_ids(client)) == 2, 60, "two replicas")
        before = replica_ids(client)
        streams = [Stream(str(client.base_url), body(1200)) for _ in range(4)]
        wait_until(lambda: all(stream.num_events for stream in streams), 60, "all have begun")
        asking = Asking(str(client.base_url))
        deploy(dashboard, tmp_path, *options, "--max-num-seqs", "77")

        def is_replaced() -> bool:
            try:
                now = replica_ids(client)
            except httpx2.TransportError:
                return False
            return len(now) == 2 and not now & before

        wait_until(is_replaced, 240, "two other replicas")
        asking.stop()
        for stream in streams:
            assert stream.wait().is_whole, stream.error
        assert len({stream.text for stream in streams}) == 1
        lost = [answer for answer in asking.answers if not answer.is_whole]
        assert not lost, [(answer.status, answer.error) for answer in lost]
        assert len({answer.text for answer in asking.answers}) == 1
