"""The tally counts right, excuses only whom it may, and finds the silences."""

from dataclasses import replace

import pytest

from tests.chaos.answer import Answer
from tests.chaos.books import Leaks
from tests.chaos.load import Outcome
from tests.chaos.oracle import OK, Judgement, Verdict
from tests.chaos.requests import COMPLETIONS, ChaosRequest
from tests.chaos.schedule import Fault, FaultKind
from tests.chaos.strike import Blow
from tests.chaos.tally import MAX_SHOWN, Fate, Tally, gap_s

REQUEST = ChaosRequest("r", COMPLETIONS, {"prompt": list(range(100)), "temperature": 0})
LOST = Judgement(Verdict.LOST, "broken")


def blow(
    kind: FaultKind = FaultKind.KILL_RANK, at: float = 10.0, mended: float | None = 20.0
) -> Blow:
    return Blow(Fault(kind, 0.0, 0.0), "pid 1", at, mended)


def outcome(
    judgement: Judgement = OK,
    times: tuple[float, ...] = (1.0, 2.0),
    cut: str = "",
    num_attempts: int | None = 1,
) -> Outcome:
    answer = Answer(REQUEST, times[0], times[-1], 200, "c", cut=cut, token_times_s=list(times))
    return Outcome(answer, judgement, "http://h", num_attempts=num_attempts)


def test_it_counts_and_a_clean_run_is_clean() -> None:
    tally = Tally([outcome(), outcome()], [blow(), blow(), blow(FaultKind.KILL_HAPROXY)])
    assert tally.is_clean
    line = tally.line()
    for part in (
        "2 requests, 2 ok, 0 excused, 0 lost, 0 wrong, 0 duplicated",
        "3 faults (2 kill rank, 1 kill haproxy)",
        "0 blocks leaked",
        "0 ledger entries left",
        "gap p50 - p99 -",
    ):
        assert part in line
    assert tally.failures() == []


@pytest.mark.parametrize("verdict", [Verdict.LOST, Verdict.WRONG, Verdict.DUPLICATED])
def test_one_bad_answer_spoils_the_run_and_is_told(verdict: Verdict) -> None:
    bad = outcome(Judgement(verdict, "because"), (9.0, 11.0))
    tally = Tally([outcome(), bad], [blow()])
    assert not tally.is_clean
    assert f"1 {verdict.value}" in tally.line()
    [told] = tally.failures()
    for part in (verdict.value, "because", "kill rank (pid 1) +1.00 s", "100 in all", "http://h"):
        assert part in told


@pytest.mark.parametrize(
    "leaks",
    [Leaks(num_used_blocks=1), Leaks(num_requests=1), Leaks(1, 0, 1), Leaks(problem="not whole")],
)
def test_what_is_left_over_spoils_the_run(leaks: Leaks) -> None:
    assert Tally([outcome()], [], Leaks()).is_clean
    assert not Tally([outcome()], [], leaks).is_clean


def test_a_run_without_an_answer_is_not_clean() -> None:
    assert not Tally([], []).is_clean


FRONTEND = blow(FaultKind.KILL_FRONTEND)


@pytest.mark.parametrize(
    ("spoiled", "struck", "fate"),
    [
        (outcome(LOST, (9.0, 11.0), "reset"), FRONTEND, Fate.EXCUSED),
        (outcome(LOST, (12.0, 13.0), "refused"), FRONTEND, Fate.EXCUSED),
        (outcome(LOST, (12.0, 13.0), "refused"), replace(FRONTEND, mended_s=None), Fate.EXCUSED),
        # A frontend that can tell an error lives.
        (outcome(LOST, (9.0, 11.0)), FRONTEND, Fate.LOST),
        (outcome(LOST, (8.0, 9.0), "reset"), FRONTEND, Fate.LOST),
        (outcome(LOST, (21.0, 22.0), "refused"), FRONTEND, Fate.LOST),
        (outcome(LOST, (9.0, 11.0), "reset"), blow(), Fate.LOST),
        (outcome(Judgement(Verdict.WRONG), (9.0, 11.0), "reset"), FRONTEND, Fate.WRONG),
    ],
)
def test_only_a_right_beginning_that_a_frontend_took_with_it_is_excused(
    spoiled: Outcome, struck: Blow, fate: Fate
) -> None:
    tally = Tally([outcome(), spoiled], [struck])
    assert tally.fate(spoiled) is fate
    assert tally.is_clean == (fate is Fate.EXCUSED)


def test_who_knows_its_frontend_is_excused_for_the_death_of_that_one_alone() -> None:
    spoiled = replace(outcome(LOST, (9.0, 11.0), "reset"), is_direct=True)
    other = blow(FaultKind.CUT_HOST)
    own = replace(other, lost_urls=frozenset({"http://h"}))
    assert Tally([spoiled], [other]).fate(spoiled) is Fate.LOST
    assert Tally([spoiled], [other, own]).fate(spoiled) is Fate.EXCUSED


def test_a_gap_is_the_longest_silence_from_the_fault_on() -> None:
    struck = blow(at=10.0, mended=12.0)
    # A silence that was over before it is none of it, nor one that began when all was well again.
    times: tuple[float, ...] = (1.0, 8.0, 9.9, 10.5, 11.9, 12.5, 19.0)
    assert gap_s(outcome(times=times).answer, struck) == pytest.approx(1.4)
    assert gap_s(outcome(times=(9.0, 9.5, 14.0)).answer, struck) == pytest.approx(4.5)
    for times in ((1.0, 9.0), (11.0, 12.0), (10.5,)):
        assert gap_s(outcome(times=times).answer, struck) is None


def test_only_streams_that_moved_count_for_the_gaps() -> None:
    moved = [outcome(times=(9.0, 10.0 + i), num_attempts=2) for i in range(1, 4)]
    stayed = outcome(times=(9.0, 19.0), num_attempts=1)
    unknown = outcome(times=(9.0, 19.0), num_attempts=None)
    first, second = blow(), blow(at=30.0)
    tally = Tally([*moved, stayed, unknown], [first, second])
    assert tally.gaps_s() == [2.0, 3.0, 4.0]
    assert tally.gaps_s(first) == [2.0, 3.0, 4.0]
    assert tally.gaps_s(second) == []
    assert "3 moved" in tally.line()
    assert "gap p50 3.00 s p99 4.00 s" in tally.line()
    assert "whole after 10.0 s, 3 moved, gap p50 3.00 s" in tally.blow_line(first)


def test_a_silence_counts_for_the_fault_that_moved_the_stream() -> None:
    first, second = blow(at=10.0, mended=11.0), blow(at=12.0, mended=13.0)
    once = outcome(times=(9.0, 10.5, 11.0, 11.9, 14.0, 15.0), num_attempts=2)
    tally = Tally([once], [first, second])
    assert tally.gaps_s(first) == []
    assert tally.gaps_s(second) == [pytest.approx(2.1)]
    tally = Tally([replace(once, num_attempts=3)], [first, second])
    assert tally.gaps_s() == [1.5, pytest.approx(2.1)]


def test_of_many_failures_the_first_are_told() -> None:
    tally = Tally([outcome(LOST)] * (MAX_SHOWN + 5), [])
    told = tally.failures()
    assert len(told) == MAX_SHOWN + 1
    assert told[-1] == "... and 5 more"
