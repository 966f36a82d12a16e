"""The autoscaler against simulated demand: it follows, does not flap, and loses no request."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest

from cluster.admission_limits import AdmissionLimits
from cluster.policies import POLICIES
from cluster.simulation.frontend import Outcome
from cluster.simulation.replica import ReplicaModel
from cluster.simulation.run import Scenario, simulate_scaling
from cluster.simulation.scaler import Scaling, ScalingRecord
from cluster.simulation.summary import Objective, Summary, summarise
from cluster.simulation.trace import TraceRequest

COLD_START_S: Final = 30.0
# Computes the prompts of one request per second, and runs 16 at a time.
MODEL = ReplicaModel(
    num_blocks=200,
    block_size=256,
    constant_s=0.05,
    seq_s=0.002,
    kv_token_s=0.0,
    prefill_token_s=1.5e-3,
    max_num_seqs=16,
    max_num_batched_tokens=512,
)
OBJECTIVE = Objective(ttft_s=5.0, tpot_s=0.5)
MOST_PER_S: Final = 4.0
# No request is to fail because it waited for a start.
PATIENT = AdmissionLimits(max_wait_s=300.0)


@dataclass(frozen=True)
class Run:
    """One simulated stretch of time."""

    outcomes: list[Outcome]
    record: ScalingRecord
    summary: Summary


def arrivals(rate: Callable[[float], float], seconds: float, seed: int = 0) -> list[TraceRequest]:
    """Requests at random, `rate(time)` per second."""
    rng = random.Random(seed)
    trace: list[TraceRequest] = []
    now = rng.expovariate(MOST_PER_S)
    while now < seconds:
        if MOST_PER_S * rng.random() < rate(now):
            trace.append(
                TraceRequest(
                    number=len(trace),
                    arrival_s=now,
                    num_input_tokens=rng.randint(200, 800),
                    num_output_tokens=rng.randint(10, 40),
                )
            )
        now += rng.expovariate(MOST_PER_S)
    return trace


def run(trace: list[TraceRequest], scaling: Scaling | None, num_replicas: int = 1) -> Run:
    scenario = Scenario(
        replicas=[MODEL] * num_replicas, num_frontends=2, limits=PATIENT, scaling=scaling
    )
    outcomes, record = simulate_scaling(trace, scenario, POLICIES["kv"])
    assert sorted(one.request.number for one in outcomes) == list(range(len(trace)))
    return Run(outcomes, record, summarise(outcomes, OBJECTIVE, record))


def scaled(trace: list[TraceRequest], least: int = 1, most: int = 8) -> Run:
    scaling = Scaling(
        min_replicas=least,
        max_replicas=most,
        model=MODEL,
        cold_start_s=COLD_START_S,
        ttft_objective_s=OBJECTIVE.ttft_s,
    )
    return run(trace, scaling)


def sinusoid(now: float) -> float:
    return 2 - 1.7 * math.cos(2 * math.pi * now / 1800)


def square(now: float) -> float:
    return 3.5 if 300 < now < 1000 else 0.3


def spike(now: float) -> float:
    return 3.5 if 400 < now < 520 else 0.2


def short_spike(now: float) -> float:
    return 3.5 if 400 < now < 400 + COLD_START_S / 2 else 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "most_turns", "least_goodput", "most_cost"),
    [
        # Turns in half an hour, in which the demand itself rises and falls once; goodput and
        # cost beside as many replicas all the time as there were at the peak.
        (sinusoid, 2, 0.95, 0.8),
        (square, 2, 0.85, 0.7),
        (spike, 2, 0.65, 0.5),
        (short_spike, 2, 0.85, 0.5),
        (lambda _: 1.5, 1, 0.95, 1.0),
    ],
    ids=["sinusoid", "square", "spike", "short spike", "constant"],
)
def test_replicas_follow_the_demand_and_do_not_flap(
    rate: Callable[[float], float], most_turns: int, least_goodput: float, most_cost: float
) -> None:
    trace = arrivals(rate, 1800)
    own = scaled(trace)
    fixed = run(trace, None, own.record.peak)
    assert own.summary.num_failed == fixed.summary.num_failed == 0
    assert own.record.num_direction_changes <= most_turns
    assert own.summary.goodput >= least_goodput * fixed.summary.goodput
    assert own.record.replica_s <= most_cost * fixed.record.replica_s


def test_a_spike_shorter_than_a_start_costs_a_few_replicas_for_one_window() -> None:
    trace = arrivals(short_spike, 1400)
    own = scaled(trace)
    changes = list(zip(own.record.change_times_s, own.record.changes, strict=True))
    ordered = [time_s for time_s, one in changes if one.num_target > one.num_before]
    assert 400 < min(ordered) < 415
    assert max(ordered) < 400 + 2 * COLD_START_S
    assert own.record.peak <= 5
    assert changes[-1][1].num_target == 1
    assert own.record.num_direction_changes == 1
    assert own.summary.num_failed == 0


def test_nothing_runs_in_a_long_lull_and_requests_wait_for_the_start() -> None:
    trace = arrivals(lambda now: 0.0 if 100 < now < 900 else 0.5, 960)
    own = scaled(trace, least=0)
    assert own.summary.num_failed == 0
    changes = list(zip(own.record.change_times_s, own.record.changes, strict=True))
    [asleep_s] = [time_s for time_s, one in changes if one.num_target == 0]
    [woken_s] = [time_s for time_s, one in changes if one.num_before == 0]
    assert 390 < asleep_s < 410
    later = [one for one in own.outcomes if one.request.arrival_s > 500]
    first = min(later, key=lambda one: one.request.arrival_s)
    # At once, where "at once" is the next look.
    assert first.request.arrival_s <= woken_s <= first.request.arrival_s + 2
    assert first.first_s is not None
    assert COLD_START_S < first.first_s - first.request.arrival_s < COLD_START_S + 8
    waited = [one for one in own.outcomes if woken_s < one.request.arrival_s < woken_s + 30]
    assert len(waited) > 5
    assert own.record.replica_s < 450 + (1000 - woken_s) * own.record.peak


def test_what_dies_is_replaced() -> None:
    trace = arrivals(lambda _: 0.7, 300)
    scaling = Scaling(min_replicas=1, max_replicas=3, model=MODEL, cold_start_s=COLD_START_S)
    scenario = Scenario(replicas=[MODEL], limits=PATIENT, deaths=[(100.0, 0)], scaling=scaling)
    outcomes, record = simulate_scaling(trace, scenario, POLICIES["kv"])
    assert len(outcomes) == len(trace)
    assert not any(one.has_failed for one in outcomes)
    assert any(one.num_placements > 1 for one in outcomes)
    assert all(one.num_target > one.num_before for one in record.changes)


def test_what_drains_ends_what_it_has() -> None:
    trace = arrivals(lambda now: 1.6 if now < 200 else 0.2, 1000)
    own = scaled(trace)
    assert own.record.changes[-1].num_target < own.record.peak
    # Draining moves nobody: a request is placed once.
    assert {one.num_placements for one in own.outcomes} == {1}
