"""Where requests go, given views; each rule on its own."""

from dataclasses import replace

import pytest

from cluster.placement import (
    WORK_COST,
    Reason,
    choose,
    has_room,
    load_product,
    predicted_seconds,
)
from cluster.request_need import RequestNeed
from tests.cluster.token_fakes import make_request
from tests.cluster.views import Row, fleet, ranking, view

NEED = RequestNeed(request_id="a", num_prompt_tokens=64)
"""4 blocks of prompt and one to write to."""


def seconds(row: Row, need: RequestNeed = NEED) -> float:
    return float(predicted_seconds(fleet(row), need)[0])


def reason(*rows: Row) -> Reason | None:
    choice = choose(fleet(*rows), NEED, 0)
    return None if choice is None else choice.reason


def test_need_counts_prompt_blocks_and_one_more_for_each_choice() -> None:
    need = RequestNeed.of(make_request("a", n=3, num_prompt_tokens=33))
    assert need.num_blocks(16) == 3 + 3
    assert need.num_choices == 3


def test_replica_that_does_not_serve_is_never_chosen() -> None:
    assert ranking([view("away", may_serve=False)], NEED) == []
    assert ranking([view("away", may_serve=False), view("b", num_active=99)], NEED) == ["b"]


def test_the_reason_says_what_decided() -> None:
    full = view("full", num_available_blocks=0, num_active=9)
    assert reason(view("a"), view("b")) is Reason.COST
    assert reason(view("a", num_cached_blocks=2), view("b")) is Reason.PREFIX
    assert reason(view("a"), full) is Reason.ONLY
    assert reason(full, full) is Reason.QUEUE
    assert reason(view("a", is_late=True)) is Reason.LATE
    assert reason(view("a", may_serve=False)) is None


def test_room_needs_the_watermark_too() -> None:
    rows = [view(num_available_blocks=blocks, num_active=1) for blocks in (15, 14)]
    assert has_room(fleet(*rows), NEED).tolist() == [True, False]
    # What is cached there takes no block.
    cached = view(num_available_blocks=13, num_active=1, num_cached_blocks=2)
    assert has_room(fleet(cached), NEED).all()
    assert not has_room(fleet(*rows), replace(NEED, spare_share=0.1)).any()


def test_room_needs_a_seat_for_every_choice() -> None:
    rows = [view(num_active=250, num_free_seats=seats) for seats in (2, 3)]
    assert has_room(fleet(*rows), replace(NEED, num_choices=3)).tolist() == [False, True]


def test_more_choices_than_may_run_at_once_do_not_wait_for_an_idle_replica() -> None:
    rows = [
        view(
            num_blocks=9000, num_available_blocks=9000, num_active=256 - seats, num_free_seats=seats
        )
        for seats in (0, 63, 64, 200)
    ]
    for num_choices in (100, 1000):
        room = has_room(fleet(*rows), replace(NEED, num_choices=num_choices))
        assert room.tolist() == [False, False, True, True]


def test_an_empty_replica_has_room_whatever_is_asked_of_it() -> None:
    huge = RequestNeed(request_id="a", num_prompt_tokens=16_000)
    rows = [view(), view(num_active=1, num_available_blocks=999)]
    assert has_room(fleet(*rows), huge).tolist() == [True, False]


def test_replicas_with_room_come_first_then_the_shortest_queue() -> None:
    views = [
        view("long queue", num_active=1, num_available_blocks=3, num_queued_prefill_tokens=500),
        view("short queue", num_active=1, num_available_blocks=0, num_queued_prefill_tokens=100),
        view("room", num_active=200, num_queued_prefill_tokens=9000),
    ]
    assert ranking(views, NEED) == ["room", "short queue", "long queue"]


def test_stale_replica_is_used_only_if_nothing_else_is_there() -> None:
    views = [
        view("busy", num_active=1, num_available_blocks=0, num_queued_prefill_tokens=9999),
        view("stale", is_late=True, num_own_requests=5),
        view("idler", is_late=True, num_own_requests=4),
    ]
    assert ranking(views, NEED) == ["busy", "idler", "stale"]


def test_shorter_prefill_queue_wins() -> None:
    views = [view("long", num_queued_prefill_tokens=2000), view("short")]
    assert ranking(views, NEED)[0] == "short"


def test_faster_replica_gets_more_before_it_looks_as_dear() -> None:
    slow = view("slow", step_time_s=(0.020, 0.0002, 0.0004))
    assert ranking([slow, view("fast", num_queued_prefill_tokens=4000)], NEED)[0] == "fast"
    assert ranking([slow, view("fast", num_queued_prefill_tokens=9000)], NEED)[0] == "slow"


def test_what_is_cached_saves_more_than_its_own_wait() -> None:
    cached = view("cached", num_cached_blocks=3, num_queued_prefill_tokens=48 * int(WORK_COST))
    assert ranking([view("idle"), cached], NEED)[0] == "cached"
    queued = view("cached", num_cached_blocks=3, num_queued_prefill_tokens=48 * 20)
    assert ranking([view("idle"), queued], NEED)[0] == "idle"


def test_work_counts_alike_for_the_slow_and_the_fast() -> None:
    slow, fast = view("slow", step_time_s=(0.010, 0.0001, 0.0004)), view("fast")
    own_s = 64 * (0.0004 - 0.0002)
    costs = predicted_seconds(fleet(slow, fast), NEED).tolist()
    assert costs[0] - costs[1] == pytest.approx(own_s)


def test_replica_with_few_free_blocks_looks_dear_before_it_is_full() -> None:
    low = view("low", num_available_blocks=60)
    assert has_room(fleet(low), NEED).all()
    assert ranking([low, view("busy", num_active=30)], NEED) == ["busy", "low"]


def test_growth_of_running_sequences_counts_as_used() -> None:
    few, many = view(num_available_blocks=200), view(num_available_blocks=200, num_active=60)
    assert seconds(few) == pytest.approx(100 * 0.0101 + 64 * 0.0002 * (1 + WORK_COST))
    assert seconds(many) > 1.5 * seconds(few)
    # A request for one token only leaves the others' growth as it is.
    short = replace(NEED, max_tokens=1)
    assert seconds(many, short) < seconds(many)


def test_without_a_learned_fit_the_product_of_prefill_and_sequences_decides() -> None:
    unlearned = (0.0, 0.0, 0.0)
    views = [
        view("a", num_active=9, num_queued_prefill_tokens=0, step_time_s=unlearned),
        view("b", num_active=1, num_queued_prefill_tokens=200, step_time_s=unlearned),
        view("c", num_active=0, num_queued_prefill_tokens=700),
    ]
    assert load_product(fleet(*views), NEED).tolist() == [640, 528, 764]
    assert ranking(views, NEED) == ["b", "a", "c"]


def test_ties_go_to_the_replica_with_fewer_sequences_and_then_around() -> None:
    free = (0.0, 0.0, 0.0001)
    views = [view("a", num_active=1, step_time_s=free), view("b", step_time_s=free)]
    assert ranking(views, NEED) == ["b", "a"]
    equal = [view("a"), view("b"), view("c")]
    firsts = [ranking(equal, NEED, rotation)[0] for rotation in range(6)]
    assert firsts == ["a", "b", "c", "a", "b", "c"]
