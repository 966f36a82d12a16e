"""The books are empty only if they are, and all is well only if it is."""

from typing import Any

import pytest

from tests.chaos.books import Leaks, leaks, missing_in

REPLICA: dict[str, Any] = {
    "connected": True,
    "state": "serving",
    "age_s": 0.1,
    "num_blocks": 10,
    "num_free_blocks": 7,
    "num_evictable_blocks": 3,
    "num_running": 0,
    "num_waiting": 0,
}


def status(*replicas: dict[str, Any], held: int = 0, placed: int = 0) -> dict[str, Any]:
    admission = {"num_held_requests": held, "num_placed_requests": placed}
    return {"models": [{"replicas": list(replicas), "admission": admission}]}


def test_a_whole_idle_cluster_is_well_and_leaks_nothing() -> None:
    seen = [status(REPLICA, REPLICA)] * 2
    assert not missing_in(seen, num_frontends=2, num_replicas=2)
    assert not leaks(seen, num_frontends=2)


@pytest.mark.parametrize("change", [{"connected": False}, {"state": "draining"}, {"age_s": 9.0}])
def test_one_replica_that_one_frontend_does_not_hear_is_not_well(change: dict[str, Any]) -> None:
    seen = [status(REPLICA, REPLICA), status(REPLICA, {**REPLICA, **change})]
    assert missing_in(seen, num_frontends=2, num_replicas=2)


def test_who_is_missing_is_not_well() -> None:
    assert missing_in([status(REPLICA)], num_frontends=1, num_replicas=2)
    assert missing_in([status(REPLICA)], num_frontends=2, num_replicas=1)
    assert "1 of 2 frontends" in leaks([status(REPLICA)], num_frontends=2).problem
    assert leaks([], num_frontends=1)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (status(REPLICA, {**REPLICA, "num_free_blocks": 5}), Leaks(num_used_blocks=2)),
        (status({**REPLICA, "num_running": 1}), Leaks(num_requests=1)),
        (status({**REPLICA, "num_waiting": 1}), Leaks(num_requests=1)),
        (status(REPLICA, held=1), Leaks(num_requests=1)),
        (status(REPLICA, placed=3), Leaks(num_placed_requests=3)),
    ],
)
def test_whatever_is_left_is_a_leak(left: dict[str, Any], expected: Leaks) -> None:
    for seen in ([left, status(REPLICA)], [status(REPLICA), left]):
        assert leaks(seen, num_frontends=2) == expected


def test_two_frontends_count_a_block_once_and_their_own_entries_each() -> None:
    used = {**REPLICA, "num_free_blocks": 6, "num_running": 1}
    seen = [status(used, placed=1), status(used, placed=2)]
    assert leaks(seen, num_frontends=2) == Leaks(1, 1, 3)
