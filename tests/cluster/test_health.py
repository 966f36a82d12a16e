"""What counts as ill."""

import pytest

from cluster.health import is_serving, problems
from cluster.snapshot import ReplicaSnapshot
from engine.snapshot import EngineState
from tests.cluster.token_fakes import make_snapshot


def replica(age_s: float = 0.1, connected: bool = True, **engine: object) -> ReplicaSnapshot:
    return ReplicaSnapshot("r1", make_snapshot(**engine), age_s, connected=connected)


def test_replica_that_reports_and_steps_has_no_problem() -> None:
    assert problems([replica(step_age_s=3.9)]) == []
    assert is_serving(replica())


@pytest.mark.parametrize(
    ("ill", "words"),
    [
        (replica(step_age_s=4.2), "made no step for 4.2 s"),
        (replica(age_s=3.3), "not been heard of for 3.3 s"),
        (replica(connected=False, age_s=9), "not connected"),
    ],
)
def test_ill_replica_is_named_with_what_ails_it(ill: ReplicaSnapshot, words: str) -> None:
    well = ReplicaSnapshot("r2", make_snapshot(), 0.0)
    assert not is_serving(ill)
    (problem,) = problems([ill, well])
    assert problem.startswith("Replica r1")
    assert words in problem
    assert problems([ill])[-1] == "No replica is serving."


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.DRAINING])
def test_replica_that_takes_no_requests_is_no_problem_of_its_own(state: EngineState) -> None:
    well = ReplicaSnapshot("r2", make_snapshot(), 0.0)
    assert problems([replica(state=state), well]) == []
    assert problems([replica(state=state)]) == ["No replica is serving."]


def test_no_replica_at_all_is_a_problem() -> None:
    assert problems([]) == ["No replica is serving."]
    ill = replica(connected=False)
    assert problems([], may_sleep=True) == []
    assert len(problems([ill], may_sleep=True)) == 2
