"""Reports that come late, or never: nothing that must come in order is lost or turned about."""

import random
from collections.abc import Sequence

import pytest

from cluster.policies import POLICIES
from cluster.simulation.events import Events
from cluster.simulation.replica import Admissions, ReplicaModel, StepResult
from cluster.simulation.reports import Reporting, Reports
from cluster.simulation.run import Scenario, simulate
from cluster.simulation.summary import Objective, summarise
from engine.output import StepOutput
from tests.cluster.test_simulation import conversations
from tests.cluster.token_fakes import make_snapshot


def step(number: int, replica_id: str = "a") -> StepResult:
    snapshot = make_snapshot(sequence=number)
    admissions = Admissions(accepted=[str(number)])
    return StepResult(replica_id, StepOutput([], 1, 1), admissions, snapshot)


def deliver(
    reporting: Reporting, num_steps: int, ours: str = ""
) -> list[tuple[float, Sequence[StepResult]]]:
    """Let a replica step ten times a second; return what arrives, and when, at the frontend that
    has placed the request `ours`."""
    events, arrived = Events(), []

    def note(results: Sequence[StepResult]) -> None:
        arrived.append((events.now, results))

    reports = Reports(reporting, events, random.Random(1), note, ours.__eq__)
    for number in range(num_steps):
        events.at(0.1 * number, lambda number=number: reports.add(step(number)))  # type: ignore[misc]
    events.run()
    return arrived


def accepted(arrived: Sequence[tuple[float, Sequence[StepResult]]]) -> list[int]:
    return [
        int(name) for _, results in arrived for one in results for name in one.admissions.accepted
    ]


def test_every_step_is_told_at_once_unless_there_is_a_period() -> None:
    assert [len(results) for _, results in deliver(Reporting(), 20)] == [1] * 20
    arrived = deliver(Reporting(period_s=0.45), 20)
    assert accepted(arrived) == list(range(20))
    assert [len(results) for _, results in arrived] == [5] * 4


def test_tokens_for_a_frontend_bring_all_that_has_waited() -> None:
    arrived = deliver(Reporting(period_s=5.0), 10, ours="7")
    assert [len(results) for _, results in arrived] == [8, 2]
    assert accepted(arrived) == list(range(10))
    assert [time_s for time_s, _ in arrived] == pytest.approx([0.7, 5.0])
    [(_, results)] = deliver(Reporting(period_s=5.0, with_tokens=False), 10, ours="7")
    assert len(results) == 10


@pytest.mark.parametrize("reporting", [Reporting(lost=0.4), Reporting(late=0.4, late_s=0.35)])
def test_acceptances_come_once_and_in_order_whatever_is_lost_or_late(reporting: Reporting) -> None:
    arrived = deliver(reporting, 200)
    told = accepted(arrived)
    assert told == list(range(len(told)))
    assert len(told) > 180


def test_late_reports_are_overtaken_and_bring_a_snapshot_alone() -> None:
    arrived = deliver(Reporting(late=0.4, late_s=0.35), 200)
    sequences = [results[-1].snapshot.sequence for _, results in arrived]
    assert sequences != sorted(sequences)


@pytest.mark.slow
def test_lost_and_late_reports_lose_no_request() -> None:
    model = ReplicaModel(num_blocks=400, block_size=256)
    scenario = Scenario(
        replicas=[model] * 3,
        num_frontends=2,
        reporting=Reporting(period_s=0.2, with_tokens=False, lost=0.3, late=0.3),
        deaths=[(5.0, 1)],
    )
    outcomes = simulate(conversations(80, rate=4), scenario, POLICIES["kv"])
    assert sorted(outcome.request.number for outcome in outcomes) == list(range(80))
    assert summarise(outcomes, Objective()).num_failed == 0
