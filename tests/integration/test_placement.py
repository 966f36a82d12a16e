"""Several replicas on live Ray: a burst fits them, and the books are empty afterwards."""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.serving import Serving, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_REPLICAS = 3
BURST = 140


@pytest.fixture(scope="module")
def serving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Three replicas, each with room for a few of the requests at once."""
    serving = Serving(
        tiny_model,
        *("--served-model-name", "tiny", "--replicas", str(NUM_REPLICAS)),
        *("--kv-cache-memory", "512KiB", "--num-threads", "1"),
        log=tmp_path_factory.mktemp("serve") / "log",
    )
    try:
        serving.wait_ready()
        serving.wait_replicas(NUM_REPLICAS)
        yield serving
    finally:
        serving.stop()


@pytest.fixture(scope="module")
def two(
    serving: Serving, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """Another cluster beside it on the machine, with two frontends."""
    two = Serving(
        tiny_model,
        *("--served-model-name", "tiny", "--replicas", "2", "--num-frontends", "2"),
        *("--kv-cache-memory", "512KiB", "--num-threads", "1"),
        log=tmp_path_factory.mktemp("two") / "log",
    )
    try:
        two.wait_ready()
        two.wait_replicas(2)
        yield two
    finally:
        two.stop()


def ask(serving: Serving, number: int) -> dict[str, Any]:
    """A request like no other, of 12 blocks."""
    body = {
        "model": "tiny",
        "prompt": [1000 + number] * 170,
        "max_tokens": 16,
        "ignore_eos": True,
        "temperature": 0,
    }
    response = serving.client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def is_known(serving: Serving, request_id: str) -> bool:
    """Whether a frontend tells why; that another one is silent for a moment is no answer."""
    response = serving.client.get(f"/status/why/{request_id}")
    assert response.status_code in {200, 503}, response.text
    return response.status_code == 200


def admission(serving: Serving) -> dict[str, Any]:
    """What the frontend holds back and has placed."""
    [model] = serving.models()
    found: dict[str, Any] = model["admission"]
    return found


def test_a_burst_never_overcommits_a_replica_and_leaves_nothing_in_the_books(
    serving: Serving,
) -> None:
    num_blocks = int(str(serving.replicas()[0]["num_blocks"]))
    assert num_blocks * NUM_REPLICAS < 12 * BURST / 2, "the burst must not fit at once"
    with ThreadPoolExecutor(BURST) as pool:
        answers = list(pool.map(lambda number: ask(serving, number), range(BURST)))
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {16}
    homes: Counter[str] = Counter()
    for answer in answers:
        why = serving.client.get(f"/status/why/{answer['id']}").json()
        assert len(why["decisions"]) == 1, "placed at the first try"
        [decision] = why["decisions"]
        chosen = decision["candidates"][0]
        need = decision["num_blocks"] - chosen["num_cached_blocks"]
        assert decision["reason"] != "queue"
        assert need <= chosen["num_available_blocks"] <= num_blocks
        homes[chosen["replica_id"]] += 1
    assert len(homes) == NUM_REPLICAS
    assert min(homes.values()) > BURST / NUM_REPLICAS / 2
    assert [replica["num_preemptions"] for replica in serving.replicas()] == [0] * NUM_REPLICAS
    wait_until(lambda: serving.num_used_blocks() == 0, 5, "all blocks back")
    found = admission(serving)
    assert sum(found["num_placements"].values()) == BURST
    assert (found["num_held_requests"], found["num_placed_requests"]) == (0, 0)


def test_two_clusters_on_a_machine_share_no_port(serving: Serving, two: Serving) -> None:
    assert not serving.listening_ports() & two.listening_ports()


def test_any_frontend_tells_why_and_all_books_are_empty_in_the_end(two: Serving) -> None:
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda number: ask(two, number), range(60)))
    for answer in answers:  # whichever frontend is asked
        wait_until(partial(is_known, two, answer["id"]), 5, "a frontend that knows")
    wait_until(lambda: two.num_used_blocks() == 0, 5, "all blocks back")
    num_placed = set()
    for _ in range(20):
        found = admission(two)
        assert (found["num_held_requests"], found["num_placed_requests"]) == (0, 0)
        num_placed.add(sum(found["num_placements"].values()))
    assert sum(num_placed) == 60 or num_placed == {30}, "both frontends had some"
    # Whoever is asked for metrics tells them of both.
    lines = two.client.get("/metrics").text.splitlines()
    counts = [line for line in lines if line.startswith("pageray_placements_total")]
    assert sum(float(line.split()[-1]) for line in counts) == 60
    assert len({re.findall('frontend="([^"]+)"', line)[0] for line in counts}) == 2


def test_clients_that_leave_while_they_wait_leave_nothing_in_the_books(serving: Serving) -> None:
    body = {"model": "tiny", "max_tokens": 400, "ignore_eos": True, "stream": True}

    def leave(number: int) -> None:
        prompt = [3000 + number] * 170
        with serving.client.stream(
            "POST", "/v1/completions", json={**body, "prompt": prompt}, timeout=120
        ) as stream:
            if number % 2:
                next(stream.iter_lines())

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(leave, range(40)))
    wait_until(lambda: admission(serving)["num_placed_requests"] == 0, 20, "all released")
    wait_until(lambda: serving.num_used_blocks() == 0, 5, "all blocks back")
    assert admission(serving)["num_held_requests"] == 0
