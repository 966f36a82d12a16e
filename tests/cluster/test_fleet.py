"""The columns: what a report and the ledger put into them, and whose row is whose."""

import numpy as np
import pytest

from cluster.fleet import MAX_AGE_S, Fleet, FleetView
from cluster.ledger import LedgerLoad
from engine.snapshot import EngineState
from tests.cluster.token_fakes import make_snapshot


def seen(fleet: Fleet, now_s: float = 0.0) -> FleetView:
    return fleet.view(now_s, np.zeros(fleet.num_rows, np.int64))


def late(fleet: Fleet, now_s: float) -> list[bool]:
    view = seen(fleet, now_s)
    return [bool(late) for late in view.is_late[view.may_serve]]


def test_queued_prompts_and_the_ledger_come_off_the_free_blocks() -> None:
    fleet = Fleet()
    engine = make_snapshot(
        num_free_blocks=50,
        num_evictable_blocks=20,
        num_waiting=2,
        num_running=3,
        num_queued_prefill_tokens=33,
        step_time_s=(0.1, 0.2, 0.3),
    )
    fleet.report("r", engine, 0.5)
    load = LedgerLoad(num_seqs=1, num_blocks=5, num_prefill_tokens=64, num_requests=7)
    fleet.load("r", load)
    view, row = seen(fleet), fleet.row("r")
    assert view.replica_ids[row] == "r"
    assert view.num_available_blocks[row] == 50 + 20 - 3 - 2 - 5
    assert view.num_active[row] == 3 + 2 + 1
    assert view.num_queued_prefill_tokens[row] == 33 + 64
    assert view.num_own_requests[row] == 7
    assert (view.constant_s[row], view.seq_s[row], view.prefill_token_s[row]) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.DRAINING])
def test_only_who_serves_and_is_connected_may_be_chosen(state: EngineState) -> None:
    fleet = Fleet()
    fleet.report("serves", make_snapshot(), 0.0)
    fleet.report("does not", make_snapshot(state=state), 0.0)
    fleet.report("cut off", make_snapshot(), 0.0)
    fleet.disconnect("cut off")
    fleet.row("said nothing yet")
    assert np.flatnonzero(seen(fleet).may_serve).tolist() == [fleet.row("serves")]
    fleet.report("cut off", make_snapshot(), 1.0)
    assert np.count_nonzero(seen(fleet).may_serve) == 2


def test_a_report_is_late_by_what_is_usual_for_its_replica() -> None:
    fleet = Fleet()
    fleet.report("r", make_snapshot(), 0.0)
    assert late(fleet, MAX_AGE_S - 0.1) == [False]
    assert late(fleet, MAX_AGE_S + 0.1) == [True]
    # One that reports every ten seconds is not late after nine.
    fleet.report("r", make_snapshot(), 10.0)
    assert late(fleet, 19.0) == [False]
    assert late(fleet, 33.0) == [True]


def test_rows_stay_while_more_come_and_are_given_away_blank() -> None:
    fleet = Fleet()
    for i in range(100):
        fleet.report(f"r{i}", make_snapshot(num_running=i), 0.0)
    view = seen(fleet)
    assert [int(view.num_active[fleet.row(f"r{i}")]) for i in range(100)] == list(range(100))
    fleet.load("r7", LedgerLoad(num_seqs=3, num_requests=3))
    row = fleet.row("r7")
    fleet.drop("r7")
    fleet.drop("never seen")
    assert np.count_nonzero(seen(fleet).may_serve) == 99
    assert fleet.row("new") == row
    view = seen(fleet)
    assert not view.may_serve[row]
    assert (view.num_active[row], view.num_own_requests[row]) == (0, 0)
    assert view.replica_ids[row] == "new"
