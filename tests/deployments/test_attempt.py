"""Which replica's tokens count when two have taken the same attempt in."""

import pytest

from deployments.attempt import Attempt
from engine.output import TokenOutput
from tests.cluster.token_fakes import output


def make_attempt() -> Attempt:
    attempt = Attempt("r.0")
    attempt.placed_on = "a"
    return attempt


def heard(attempt: Attempt) -> list[object]:
    return [attempt.events.get_nowait() for _ in range(attempt.events.qsize())]


def test_the_first_replica_that_takes_it_counts() -> None:
    attempt = make_attempt()
    assert attempt.replica_id == "a"
    assert attempt.accept("b") is None
    assert attempt.replica_id == "b"
    assert attempt.accept("b") is None
    # It came where it was placed only after Serve had led it elsewhere.
    assert attempt.accept("a") == "a"
    assert attempt.replica_id == "b"
    assert attempt.uses("a")
    assert attempt.uses("b")
    assert not attempt.uses("c")


@pytest.mark.parametrize("has_outputs", [True, False])
def test_it_goes_with_its_call_unless_tokens_have_come(has_outputs: bool) -> None:
    attempt = make_attempt()
    assert attempt.accept("a") is None
    outputs: list[TokenOutput] = []
    if has_outputs:
        outputs.append(output("r.0", 0))
        attempt.take("a", outputs[0])
    assert attempt.accept("b") == ("b" if has_outputs else "a")
    for replica_id in ("a", "b"):
        last = output("r.0", 1)
        attempt.take(replica_id, last)
        if replica_id == ("a" if has_outputs else "b"):
            outputs.append(last)
    assert heard(attempt) == outputs


def test_outputs_that_come_before_the_acceptance_count() -> None:
    attempt = make_attempt()
    only = output("r.0", 0)
    attempt.take("a", only)
    attempt.take("b", output("r.0", 7))
    assert heard(attempt) == [only]
    assert attempt.accept("b") == "b"
