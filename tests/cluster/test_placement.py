"""Where requests go, given views; each rule on its own."""

from dataclasses import replace

import pytest

from cluster.ledger import LedgerLoad
from cluster.placement import PlacementView, RequestNeed, load_product, predicted_seconds, rank
from cluster.snapshot import ReplicaSnapshot
from engine.snapshot import EngineState
from tests.cluster.token_fakes import make_request, make_snapshot
from tests.cluster.views import view

NEED = RequestNeed(request_id="a", num_prompt_tokens=64)
"""4 blocks of prompt and one to write to."""


def test_need_counts_prompt_blocks_and_one_more_for_each_choice() -> None:
    request = make_request("a", n=3, num_prompt_tokens=33)
    need = RequestNeed.of(request)
    assert need.num_blocks(16) == 3 + 3
    assert need.entry(view()).num_seqs == 3
    assert need.entry(view()).num_prefill_tokens == 33
    # What is cached there is neither computed nor taken.
    assert need.entry(view(num_cached_blocks=2)).num_prefill_tokens == 1
    assert need.entry(view(num_cached_blocks=2)).num_blocks == 1 + 3


def test_view_takes_queued_prompts_and_the_ledger_off_the_free_blocks() -> None:
    engine = make_snapshot(
        num_free_blocks=50,
        num_evictable_blocks=20,
        num_waiting=2,
        num_running=3,
        num_queued_prefill_tokens=33,
    )
    load = LedgerLoad(num_seqs=1, num_blocks=5, num_prefill_tokens=64, num_requests=7)
    seen = PlacementView.of(ReplicaSnapshot("r", engine, 0.5), load)
    assert seen.num_available_blocks == 50 + 20 - 3 - 2 - 5
    assert seen.num_active == 3 + 2 + 1
    assert seen.num_queued_prefill_tokens == 33 + 64
    assert seen.num_own_requests == 7
    assert seen.age_s == 0.5


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.DRAINING])
def test_replica_that_does_not_serve_is_never_chosen(state: EngineState) -> None:
    away = ReplicaSnapshot("away", make_snapshot(state=state), 0.0)
    broken = ReplicaSnapshot("broken", make_snapshot(), 0.0, connected=False)
    views = [PlacementView.of(each, LedgerLoad()) for each in (away, broken)]
    assert rank(views, NEED, 0) == []


def test_room_needs_the_watermark_too() -> None:
    assert view(num_available_blocks=15).has_room(NEED)
    assert not view(num_available_blocks=14).has_room(NEED)


def test_replicas_with_room_come_first_then_the_shortest_queue() -> None:
    views = [
        view("long queue", num_available_blocks=3, num_queued_prefill_tokens=500),
        view("short queue", num_available_blocks=0, num_queued_prefill_tokens=100),
        view("room", num_active=200, num_queued_prefill_tokens=9000),
    ]
    assert rank(views, NEED, 0) == ["room", "short queue", "long queue"]


def test_stale_replica_is_used_only_if_nothing_else_is_there() -> None:
    views = [
        view("busy", num_available_blocks=0, num_queued_prefill_tokens=9999),
        view("stale", age_s=2.1, num_own_requests=5),
        view("idler", age_s=9.0, num_own_requests=4),
    ]
    assert rank(views, NEED, 0) == ["busy", "idler", "stale"]


def test_shorter_prefill_queue_wins() -> None:
    views = [view("long", num_queued_prefill_tokens=2000), view("short")]
    assert rank(views, NEED, 0)[0] == "short"


def test_faster_replica_gets_more_before_it_looks_as_dear() -> None:
    slow = view("slow", step_time_s=(0.020, 0.0002, 0.0004))
    assert rank([slow, view("fast", num_queued_prefill_tokens=4000)], NEED, 0)[0] == "fast"
    assert rank([slow, view("fast", num_queued_prefill_tokens=9000)], NEED, 0)[0] == "slow"


def test_replica_with_few_free_blocks_looks_dear_before_it_is_full() -> None:
    low = view("low", num_available_blocks=60)
    assert low.has_room(NEED)
    assert rank([low, view("busy", num_active=30)], NEED, 0) == ["busy", "low"]


def test_growth_of_running_sequences_counts_as_used() -> None:
    few, many = view(num_available_blocks=200), view(num_available_blocks=200, num_active=60)
    assert predicted_seconds(few, NEED) == pytest.approx(100 * 0.0101 + 64 * 0.0002)
    assert predicted_seconds(many, NEED) > 1.5 * predicted_seconds(few, NEED)
    # A request for one token only leaves the others' growth as it is.
    short = replace(NEED, max_tokens=1)
    assert predicted_seconds(many, short) < predicted_seconds(many, NEED)


def test_without_a_learned_fit_the_product_of_prefill_and_sequences_decides() -> None:
    unlearned = (0.0, 0.0, 0.0)
    views = [
        view("a", num_active=9, num_queued_prefill_tokens=0, step_time_s=unlearned),
        view("b", num_active=1, num_queued_prefill_tokens=200, step_time_s=unlearned),
        view("c", num_active=0, num_queued_prefill_tokens=700),
    ]
    assert [load_product(each, NEED) for each in views] == [640, 528, 764]
    assert rank(views, NEED, 0) == ["b", "a", "c"]


def test_ties_go_to_the_replica_with_fewer_sequences_and_then_around() -> None:
    free = (0.0, 0.0, 0.0001)
    views = [view("a", num_active=1, step_time_s=free), view("b", step_time_s=free)]
    assert rank(views, NEED, 0) == ["b", "a"]
    equal = [view("a"), view("b"), view("c")]
    firsts = [rank(equal, NEED, rotation)[0] for rotation in range(6)]
    assert firsts == ["a", "b", "c", "a", "b", "c"]
