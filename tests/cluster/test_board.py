"""The board: whom it knows, whom it chooses, and what a burst does to it."""

import threading
from collections import Counter

import pytest

from cluster.board import Board
from cluster.fleet import FleetView
from cluster.placement import Choice, choose
from cluster.request_need import RequestNeed
from engine.snapshot import EngineState
from tests.cluster.token_fakes import make_snapshot
from tests.fakes import FakeClock


def make_board(*replica_ids: str, clock: FakeClock | None = None) -> Board:
    board = Board(clock=clock or FakeClock())
    board.set_members({replica_id: {"address": replica_id} for replica_id in replica_ids})
    return board


def need(request_id: str, num_prompt_tokens: int = 64) -> RequestNeed:
    return RequestNeed(request_id=request_id, num_prompt_tokens=num_prompt_tokens)


@pytest.mark.parametrize("step_time_s", [(0.0, 0.0, 0.0), (0.012, 0.0004, 0.00016)])
def test_burst_over_unequal_replicas_is_levelled_and_never_overcommits(
    step_time_s: tuple[float, float, float],
) -> None:
    sizes = {"small": 100, "middle": 200, "large": 400}
    board = make_board(*sizes)
    for replica_id, size in sizes.items():
        snapshot = make_snapshot(num_blocks=size, num_free_blocks=size, step_time_s=step_time_s)
        board.update(replica_id, snapshot)
    # 4 blocks each, and no report comes in between.
    placed = Counter(board.choose(need(f"r{i}", num_prompt_tokens=48)) for i in range(140))
    assert placed.total() == 140
    left = {replica_id: size - 4 * placed[replica_id] for replica_id, size in sizes.items()}
    assert placed["small"] < placed["middle"] < placed["large"]
    shares = [left[replica_id] / size for replica_id, size in sizes.items()]
    assert min(shares) > 0.01  # the watermark
    assert max(shares) - min(shares) < 0.25


def test_blocks_that_another_frontend_took_are_seen_with_the_next_snapshot() -> None:
    board = make_board("a", "b")
    board.update("a", make_snapshot(sequence=1, num_free_blocks=100))
    board.update("b", make_snapshot(sequence=1, num_free_blocks=6))
    assert {board.choose(need(f"r{i}")) for i in range(4)} == {"a"}
    board.update("a", make_snapshot(sequence=2, num_free_blocks=5))
    board.update("b", make_snapshot(sequence=2, num_free_blocks=100))
    assert {board.choose(need(f"s{i}")) for i in range(4)} == {"b"}


def test_ledger_holds_until_the_engine_accepts_whatever_snapshots_come() -> None:
    board = make_board("a", "b")
    for replica_id in ("a", "b"):
        board.update(replica_id, make_snapshot(sequence=1, num_free_blocks=12))
    assert {board.choose(need("x")), board.choose(need("y"))} == {"a", "b"}
    # These snapshots were taken before the requests arrived.
    for replica_id in ("a", "b"):
        board.update(replica_id, make_snapshot(sequence=2, num_free_blocks=12))
    board.update("a", make_snapshot(sequence=3, num_free_blocks=12), ["x", "y"])
    # Room on "a" again: its request was accepted, and its blocks are in the snapshot.
    assert board.choose(need("z")) == "a"
    assert board.num_requests == 3
    for request_id in ("x", "y", "z"):
        board.release(request_id)
    assert board.num_requests == 0


def test_late_snapshot_does_not_replace_a_newer_one_but_its_acceptances_count() -> None:
    board = make_board("a")
    board.update("a", make_snapshot(sequence=5, num_free_blocks=70))
    board.update("a", make_snapshot(sequence=4, num_free_blocks=90))
    assert board.snapshots()[0].engine.num_free_blocks == 70
    # The same state with a later step age.
    board.update("a", make_snapshot(sequence=5, num_free_blocks=70, step_age_s=1.0))
    assert board.snapshots()[0].engine.step_age_s == 1.0


def test_new_engine_process_starts_from_nothing() -> None:
    board = make_board("a")
    board.update("a", make_snapshot(epoch="first", sequence=9, num_free_blocks=10))
    board.choose(need("x"))
    board.update("a", make_snapshot(epoch="second", sequence=1, num_free_blocks=100))
    assert board.num_requests == 0
    assert board.snapshots()[0].engine.num_free_blocks == 100


def test_member_that_has_not_reported_is_not_chosen() -> None:
    board = make_board("a")
    assert board.choose(need("x")) is None
    assert board.snapshots() == []
    assert board.num_requests == 0


def test_choice_is_among_the_candidates_only() -> None:
    board = make_board("a", "b")
    board.update("a", make_snapshot())
    board.update("b", make_snapshot(num_free_blocks=50))
    assert board.choose(need("x"), among={"b"}) == "b"
    assert board.choose(need("y"), among=set()) is None


def test_lost_replica_is_chosen_again_once_it_reports() -> None:
    board = make_board("a")
    board.update("a", make_snapshot())
    board.choose(need("x"))
    board.mark_lost("a")
    board.mark_lost("unknown")
    assert board.num_requests == 0
    assert not board.snapshots()[0].connected
    assert board.choose(need("y")) is None
    board.update("a", make_snapshot())
    assert board.choose(need("y")) == "a"


def test_draining_replica_gets_nothing_new() -> None:
    board = make_board("a")
    board.update("a", make_snapshot(state=EngineState.DRAINING))
    assert board.choose(need("x")) is None


def test_former_member_is_forgotten_and_stays_so() -> None:
    board = make_board("a", "b")
    board.update("a", make_snapshot())
    board.choose(need("x"))
    board.set_members({"b": {}})
    board.update("a", make_snapshot(sequence=2))
    assert board.snapshots() == []
    assert board.num_requests == 0


def test_subscribers_hear_of_changes_only_and_may_ask_back() -> None:
    board = make_board("a")
    heard: list[set[str]] = []
    board.subscribe(lambda: heard.append(set(board.members())))
    board.set_members({"a": {"address": "a"}})
    board.set_members({"b": {"address": "b"}})
    assert heard == [{"b"}]


def test_age_of_a_snapshot_is_the_time_since_it_came() -> None:
    clock = FakeClock()
    board = make_board("a", clock=clock)
    board.update("a", make_snapshot())
    clock.advance(1.5)
    assert board.snapshots()[0].age_s == 1.5
    board.update("a", make_snapshot())
    assert board.snapshots()[0].age_s == 0


def test_choices_from_many_threads_count_each_other() -> None:
    board = make_board("a", "b")
    for replica_id in ("a", "b"):
        board.update(replica_id, make_snapshot(num_blocks=1000, num_free_blocks=1000))
    chosen: list[str | None] = []

    def choose(thread: int) -> None:
        chosen.extend(board.choose(need(f"{thread}-{i}")) for i in range(25))

    threads = [threading.Thread(target=choose, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(chosen) == {"a": 50, "b": 50}


def test_replicas_that_have_left_take_no_room_when_their_streams_break_afterwards() -> None:
    num_rows = []

    def policy(view: FleetView, need: RequestNeed, rotation: int) -> Choice | None:
        num_rows.append(len(view.replica_ids))
        return choose(view, need, rotation)

    board = Board(policy=policy, clock=FakeClock())
    for i in range(100):
        board.set_members({f"replica{i}": {}})
        board.update(f"replica{i}", make_snapshot())
        assert board.choose(need(f"r{i}")) == f"replica{i}"
        board.release(f"r{i}")
        board.set_members({})
        board.mark_lost(f"replica{i}")
    assert num_rows[-1] == num_rows[0]


def test_a_replica_to_avoid_is_chosen_again_when_it_reports_and_has_forgotten_nothing() -> None:
    board = Board()
    board.set_members({"a": {}})
    board.update("a", make_snapshot())
    assert board.choose(need("r")) == "a"
    board.avoid("a")
    assert board.choose(need("s")) is None
    assert board.placement("r") == "a"
    board.update("a", make_snapshot(sequence=2))
    assert board.choose(need("s")) == "a"
