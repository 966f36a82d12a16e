"""The last replica goes when nobody asks, and the first request wakes one."""

import pytest

from cluster.autoscaling.decision import Reason
from tests.cluster.scaling_fakes import Deployment, demand


def test_the_last_replica_goes_after_the_delay_without_any_request() -> None:
    deployment = Deployment(1, bounds=(0, 3))
    deployment.alike(demand(5), seconds=100)
    assert deployment.alike(demand(), seconds=298) == 1
    assert deployment.alike(demand(), seconds=2) == 0
    assert deployment.reason() is Reason.IDLE
    assert deployment.decisions[-1].idle_s == 300


def test_a_request_between_two_looks_counts() -> None:
    deployment = Deployment(1, bounds=(0, 3))
    deployment.alike(demand(), seconds=200)
    assert deployment.alike(demand(num_generated_tokens=1), seconds=300) == 1
    assert deployment.alike(demand(num_generated_tokens=1), seconds=2) == 0


def test_one_stays_where_one_must() -> None:
    assert Deployment(1).alike(demand(), seconds=2000) == 1


def test_several_become_one_before_they_become_none() -> None:
    deployment = Deployment(3, bounds=(0, 3))
    seen = [deployment.alike(demand(), seconds=2) for _ in range(300)]
    assert [a for a, b in zip(seen, [None, *seen], strict=False) if a != b] == [3, 2, 1, 0]


@pytest.mark.parametrize("queued", [0.05, 1, 50])
def test_the_first_request_wakes_one_at_once(queued: float) -> None:
    deployment = Deployment(0, bounds=(0, 3))
    assert deployment.decide() == 0
    assert deployment.reason() is Reason.ASLEEP
    assert deployment.decide(queued=queued) == 1
    assert deployment.reason() is Reason.WAKE


def test_what_was_woken_stays_for_the_delay_though_nobody_waits_any_more() -> None:
    deployment = Deployment(0, bounds=(0, 3))
    deployment.decide(queued=1)
    for _ in range(500):
        deployment.num_serving = 0
        assert deployment.decide() == 1
    deployment.num_serving = 1
    assert deployment.alike(demand(), seconds=298) == 1
    assert deployment.alike(demand(), seconds=4) == 0
