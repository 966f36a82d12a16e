"""When replicas are added and when they go."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from cluster.autoscaling import LOW_PERIOD_S, WAIT_PERIOD_S, ReplicaDemand, desired_replicas


def demand(used: float = 0, **fields: float) -> ReplicaDemand:
    plain = ReplicaDemand(
        block_size=16,
        num_blocks=100,
        num_used_blocks=used,
        num_waiting=0,
        num_running=1 if used else 0,
        num_queued_prefill_tokens=0,
    )
    return replace(plain, **fields)


class Deployment:
    """Calls the policy as Serve would and obeys it."""

    def __init__(self, num_replicas: int = 1, min_replicas: int = 1, max_replicas: int = 10):
        self.num_replicas = num_replicas
        self.bounds = (min_replicas, max_replicas)
        self.now_s = 1000.0
        self._state: dict[str, Any] = {}

    def decide(self, *demands: ReplicaDemand, after_s: float = 1.0, num_queued: int = 0) -> int:
        self.now_s += after_s
        self.num_replicas, state = desired_replicas(
            demands,
            num_replicas=self.num_replicas,
            min_replicas=self.bounds[0],
            max_replicas=self.bounds[1],
            num_queued_requests=num_queued,
            now_s=self.now_s,
            state=self._state,
        )
        # Serve keeps the state as JSON.
        self._state = json.loads(json.dumps(state))
        return self.num_replicas


def test_demand_is_used_blocks_and_those_that_queued_prompts_will_take() -> None:
    queued = demand(10, num_waiting=2, num_queued_prefill_tokens=33)
    assert queued.num_needed_blocks == 10 + 3 + 2


def test_metrics_by_name_make_a_demand_and_missing_ones_count_as_nothing() -> None:
    names = {"block_size": 16.0, "num_blocks": 100.0, "num_used_blocks": 7.0}
    assert ReplicaDemand.from_metrics(names) == demand(7, num_running=0)
    assert Deployment().decide(ReplicaDemand.from_metrics({})) == 1


def test_high_demand_adds_replicas_at_once() -> None:
    assert Deployment().decide(demand(75)) == 1
    assert Deployment().decide(demand(76)) == 2
    assert Deployment().decide(demand(100, num_queued_prefill_tokens=3200)) == 4


def test_cached_prefixes_that_nobody_uses_are_no_demand() -> None:
    # num_used_blocks leaves evictable blocks out, so a cache that is full counts as empty.
    assert Deployment().decide(demand(0)) == 1


def test_starting_replicas_are_not_ordered_twice() -> None:
    deployment = Deployment()
    assert deployment.decide(demand(100, num_queued_prefill_tokens=1600)) == 3
    for _ in range(200):
        # Two are still starting and report nothing.
        assert deployment.decide(demand(100, num_queued_prefill_tokens=1600)) == 3


def test_bounds_hold_whatever_the_demand() -> None:
    assert Deployment(max_replicas=2).decide(demand(100, num_queued_prefill_tokens=9999)) == 2
    assert Deployment(min_replicas=3).decide(demand(1)) == 3
    assert Deployment(num_replicas=9, max_replicas=5).decide() == 5


def test_replica_goes_only_after_a_sustained_low() -> None:
    deployment = Deployment(num_replicas=3)
    low = [demand(5)] * 3
    assert deployment.decide(*low) == 3
    assert deployment.decide(*low, after_s=LOW_PERIOD_S - 1) == 3
    assert deployment.decide(*low, after_s=1) == 1


def test_a_high_moment_starts_the_low_period_again() -> None:
    deployment = Deployment(num_replicas=2)
    assert deployment.decide(demand(5), demand(5)) == 2
    assert deployment.decide(demand(70), demand(70), after_s=LOW_PERIOD_S - 1) == 2
    assert deployment.decide(demand(5), demand(5), after_s=2) == 2
    assert deployment.decide(demand(5), demand(5), after_s=LOW_PERIOD_S) == 1


def test_as_many_stay_as_the_busiest_moment_of_the_low_period_needed() -> None:
    deployment = Deployment(num_replicas=5)
    assert deployment.decide(*[demand(5)] * 5) == 5
    assert deployment.decide(*[demand(30)] * 5) == 5
    assert deployment.decide(*[demand(5)] * 5, after_s=LOW_PERIOD_S) == 3


def test_removal_is_judged_by_what_the_others_would_then_carry() -> None:
    deployment = Deployment(num_replicas=2)
    for _ in range(5):
        # One replica would be at 70 %: below the target for adding, too much for removing.
        assert deployment.decide(demand(35), demand(35), after_s=LOW_PERIOD_S) == 2


@pytest.mark.parametrize("used", range(1, 400, 7))
def test_constant_demand_settles_and_never_swings(used: int) -> None:
    deployment = Deployment(num_replicas=4)
    counts = []
    for _ in range(400):
        share = demand(min(100, used / deployment.num_replicas))
        counts.append(deployment.decide(*[share] * deployment.num_replicas, after_s=5))
    changes = [b - a for a, b in pairwise(counts) if a != b]
    assert len(changes) <= 1


def test_missing_reports_are_not_idleness() -> None:
    deployment = Deployment(num_replicas=3)
    for _ in range(5):
        assert deployment.decide(demand(1), after_s=LOW_PERIOD_S) == 3
        assert deployment.decide(after_s=LOW_PERIOD_S) == 3


def test_requests_that_keep_waiting_for_a_full_batch_add_replicas() -> None:
    deployment = Deployment()
    full_batch = demand(20, num_running=8, num_waiting=12)
    assert deployment.decide(full_batch) == 1
    assert deployment.decide(full_batch, after_s=WAIT_PERIOD_S) == 3


def test_a_moment_of_waiting_adds_nothing() -> None:
    deployment = Deployment()
    for _ in range(10):
        assert deployment.decide(demand(20, num_waiting=4)) == 1
        assert deployment.decide(demand(20)) == 1


def test_requests_that_wait_where_nothing_runs_add_nothing() -> None:
    deployment = Deployment()
    for _ in range(10):
        assert deployment.decide(demand(0, num_waiting=5)) == 1


def test_requests_that_wait_for_a_first_replica_get_one() -> None:
    deployment = Deployment(num_replicas=0, min_replicas=0)
    assert deployment.decide(num_queued=3) == 0
    assert deployment.decide(num_queued=3, after_s=WAIT_PERIOD_S) == 1
    assert deployment.decide(num_queued=3) == 1


def test_idle_deployment_that_may_shrink_to_nothing_does() -> None:
    deployment = Deployment(min_replicas=0)
    assert deployment.decide(demand(0)) == 1
    assert deployment.decide(demand(0), after_s=LOW_PERIOD_S) == 0


def test_clock_that_steps_back_does_not_remove_replicas() -> None:
    deployment = Deployment(num_replicas=2)
    assert deployment.decide(demand(1), demand(1)) == 2
    assert deployment.decide(demand(1), demand(1), after_s=-500) == 2
    assert deployment.decide(demand(1), demand(1), after_s=LOW_PERIOD_S - 1) == 2
