"""A service that is told to stop: whoever is inside is served, nobody else comes in."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.serving import Serving, wait_until
from tests.integration.streams import Stream

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_STREAMS = 6


@pytest.fixture
def serving(tiny_model: Path, tmp_path: Path) -> Iterator[Serving]:
    """One sequence at a time, so that the others wait."""
    serving = Serving(
        tiny_model,
        *("--max-num-seqs", "1", "--kv-cache-memory", "64MiB"),
        log=tmp_path / "log",
    )
    try:
        serving.wait_ready()
        yield serving
    finally:
        serving.stop()


def body(max_tokens: int) -> dict[str, object]:
    return {"prompt": "Once upon a time", "max_tokens": max_tokens, "ignore_eos": True, "seed": 1}


def test_ctrl_c_serves_those_that_wait_and_refuses_those_that_come(serving: Serving) -> None:
    streams = [Stream(serving.url, body(600)) for _ in range(NUM_STREAMS)]
    wait_until(lambda: serving.num_open() == NUM_STREAMS, 30, "all are inside")
    wait_until(lambda: any(stream.num_events for stream in streams), 30, "one has begun")
    serving.process.send_signal(signal.SIGINT)
    wait_until(lambda: serving.client.get("/ready").status_code == 503, 10, "the door is closed")
    refused = Stream(serving.url, body(5)).wait()
    assert refused.status == 503
    for stream in streams:
        stream.wait()
        assert stream.is_whole, stream.error
        assert stream.text == streams[0].text
    serving.process.wait(60)


@pytest.mark.long
@pytest.mark.usefixtures("smollm2_path")
def test_streams_move_when_their_replica_has_to_go(tmp_path: Path) -> None:
    serving = Serving(
        "smollm2",
        *("--replicas", "1:2", "--scale-down-delay", "3", "--drain-timeout", "2"),
        *("--max-num-seqs", "4", "--kv-cache-memory", "256MiB"),
        *("--deterministic", "--dtype", "float32"),
        log=tmp_path / "log",
    )
    try:
        serving.wait_ready()
        short = [Stream(serving.url, body(100)) for _ in range(12)]
        serving.wait_replicas(2)
        # One of these on each, and both longer than either replica waits for them.
        long = [Stream(serving.url, body(1200)) for _ in range(4)]
        for stream in short:
            stream.wait()
        serving.wait_replicas(1)
        for stream in long:
            assert stream.wait().is_whole, stream.error
        assert len({stream.text for stream in long}) == 1
        (model,) = serving.models()
        assert model["admission"]["num_resumed"] > 0
    finally:
        serving.stop()
