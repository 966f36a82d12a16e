"""Traces made of traces."""

import pytest

from cluster.simulation.shaping import (
    FLOOD_TENANT,
    multiplied,
    scaled,
    shrunk,
    window,
    with_burst,
    with_flood,
)
from cluster.simulation.trace import TraceRequest
from engine.errors import InvalidConfig


def trace(num_requests: int = 100) -> list[TraceRequest]:
    """One request a second, each of another length."""
    return [
        TraceRequest(
            number=i,
            arrival_s=float(i),
            num_input_tokens=100 + i,
            num_output_tokens=10,
            tenant="t",
            prefix_ids=(1, 2),
        )
        for i in range(num_requests)
    ]


def arrivals(requests: list[TraceRequest]) -> list[float]:
    return [request.arrival_s for request in requests]


def test_the_first_seed_is_the_beginning_and_others_are_somewhere_else() -> None:
    assert arrivals(window(trace(), 10, 0)) == list(range(10))
    parts = [window(trace(), 10, seed) for seed in (1, 2, 3)]
    for part in parts:
        assert len(part) == 10
        assert 0 <= part[0].arrival_s < 1
    assert len({part[0].number for part in parts}) == 3
    assert parts[0] == window(trace(), 10, 1)
    with pytest.raises(InvalidConfig, match="No request is left"):
        window(trace()[50:], 10, 0)


def test_a_burst_brings_its_requests_forward_and_leaves_the_rest() -> None:
    moved = arrivals(with_burst(trace(), 20, 5, 4))
    assert moved[:20] == list(range(20))
    assert moved[20:40] == [20 + i / 4 for i in range(20)]
    assert moved[40:] == list(range(40, 100))


def test_a_flood_sends_its_share_and_the_others_as_before() -> None:
    requests = with_flood(trace(), 0.7)
    flood = [request for request in requests if request.tenant == FLOOD_TENANT]
    assert len(flood) / len(requests) == pytest.approx(0.7, abs=0.01)
    assert [request for request in requests if request.tenant == "t"] == trace()
    assert arrivals(requests) == sorted(arrivals(requests))
    assert len({request.number for request in requests}) == len(requests)


def test_scaled_and_shrunk() -> None:
    assert arrivals(scaled(trace(3), 2.0)) == [0.0, 0.5, 1.0]
    [short] = shrunk(trace(1), 16)
    assert (short.num_input_tokens, short.num_output_tokens) == (6, 1)
    assert short.prompt() == [1] * 6
    [half] = shrunk(trace(1), 2)
    assert len(half.prompt()) == 50


def test_copies_come_as_often_each_and_share_no_prompts() -> None:
    requests = multiplied(trace(), 4, 100.0)
    assert [request.number for request in requests] == list(range(400))
    assert arrivals(requests) == sorted(arrivals(requests))
    # As dense everywhere, because each begins a quarter further on.
    assert arrivals(requests) == [float(i // 4) for i in range(400)]
    at_once = requests[200:204]
    assert len({request.num_input_tokens for request in at_once}) == 4
    assert len({request.cache_salt for request in at_once}) == 4
    assert {request.tenant for request in requests} == {"t"}
    assert multiplied(trace(), 1, 100.0) == trace()
