"""Schedules repeat by their seed and leave nothing out."""

from itertools import islice, pairwise

import pytest

from tests.chaos.schedule import HASTY_PAUSES_S, PAUSES_S, Fault, FaultKind, schedule

COUNT = 300


def faults(seed: int, kinds: list[FaultKind] | None = None) -> list[Fault]:
    return list(islice(schedule(seed, kinds or list(FaultKind)), COUNT))


def test_a_seed_has_one_schedule_in_whatever_order_the_kinds_are_given() -> None:
    assert faults(1) == faults(1)
    assert faults(1) == faults(1, list(reversed(FaultKind)))
    assert faults(1) != faults(2)


def test_every_kind_comes_before_any_comes_again() -> None:
    kinds = [fault.kind for fault in faults(3)]
    for start in range(0, COUNT - len(FaultKind), len(FaultKind)):
        assert set(kinds[start : start + len(FaultKind)]) == set(FaultKind)
    orders = {tuple(kinds[i : i + len(FaultKind)]) for i in range(0, 220, len(FaultKind))}
    assert len(orders) > 1, "not the same round again and again"


def test_only_the_kinds_that_a_cluster_knows_come() -> None:
    known = [FaultKind.KILL_RANK, FaultKind.STOP_RANK]
    assert {fault.kind for fault in faults(1, known)} == set(known)


def test_all_victims_are_chosen_and_pauses_are_bounded() -> None:
    drawn = faults(5)
    assert {int(fault.lot * 4) for fault in drawn} == {0, 1, 2, 3}
    for fault in drawn:
        shortest_s, longest_s = HASTY_PAUSES_S if fault.is_hasty else PAUSES_S
        assert shortest_s <= fault.pause_s <= longest_s


@pytest.mark.parametrize("seed", range(5))
def test_some_are_hasty_and_a_replica_lives_all_the_time(seed: int) -> None:
    drawn = faults(seed)
    assert COUNT / 10 < sum(fault.is_hasty for fault in drawn) < COUNT / 2
    num_gone = 0
    for fault in drawn:
        if not fault.is_hasty:  # the cluster is whole
            num_gone = 0
        num_gone += fault.kind.takes_replica
        assert num_gone <= 1
    assert any(a.kind.takes_replica and b.is_hasty for a, b in pairwise(drawn))


@pytest.mark.parametrize("kind", list(FaultKind))
def test_a_fault_has_a_duration_if_it_lasts_and_only_then(kind: FaultKind) -> None:
    durations_s = {fault.duration_s for fault in faults(1, [kind])}
    if kind.lasts:
        assert min(durations_s) > 0
        assert len(durations_s) > 1
    else:
        assert durations_s == {0.0}


def test_a_kind_names_the_role_that_it_is_done_to() -> None:
    roles = {"rank", "replica", "frontend", "haproxy", "controller"}
    assert {kind.role for kind in FaultKind} == {"", *roles}
    assert FaultKind.KILL_RANK.role == FaultKind.STOP_RANK.role == "rank"
    assert FaultKind.CUT_HOST.role == FaultKind.KILL_RAYLET.role == ""


def test_who_loses_no_client_excuses_none() -> None:
    assert not any(
        kind.excuses_clients
        for kind in FaultKind
        if kind.role in {"rank", "replica", "controller"} or kind is FaultKind.STOP_FRONTEND
    )
