"""Turns among tenants: who goes next, what weights do, and what staying away does not earn."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fair_share import FairShare


@dataclass
class Work:
    tenant: str
    number: int
    num_missing_tokens: int = 10
    weight: float = 1.0
    priority: int = 0

    @property
    def place(self) -> tuple[int, float, int]:
        return self.priority, float(self.number), self.number


def serve(fair: FairShare, queues: dict[str, list[Work]], count: int) -> str:
    """Serve one after the other, and return whose they were."""
    served = ""
    for _ in range(count):
        entry = next(fair.order([queue for queue in queues.values() if queue]))
        queues[entry.tenant].remove(entry)
        fair.charge(entry, entry.num_missing_tokens)
        fair.leave(entry.tenant)
        served += entry.tenant
    return served


def enter(fair: FairShare, *works: Work) -> dict[str, list[Work]]:
    queues: dict[str, list[Work]] = {}
    for work in works:
        fair.enter(work.tenant)
        queues.setdefault(work.tenant, []).append(work)
    return queues


def test_a_flood_goes_by_turns_with_the_others() -> None:
    fair = FairShare(claim=0)
    flood = [Work("f", i) for i in range(90)]
    queues = enter(fair, *flood, *[Work("a", 100 + i) for i in range(5)])
    assert serve(fair, queues, 10) == "fa" * 5
    assert serve(fair, queues, 3) == "fff"


def test_turns_are_of_tokens_by_weight() -> None:
    fair = FairShare(claim=0)
    works = [Work("s", i, num_missing_tokens=10) for i in range(60)]
    works += [Work("l", 100 + i, num_missing_tokens=60) for i in range(60)]
    works += [Work("w", 200 + i, num_missing_tokens=60, weight=3.0) for i in range(60)]
    served = serve(fair, enter(fair, *works), 60)
    tokens = {"s": 10 * served.count("s"), "l": 60 * served.count("l"), "w": 60 * served.count("w")}
    assert tokens["s"] == pytest.approx(tokens["l"], abs=60)
    assert tokens["w"] == pytest.approx(3 * tokens["l"], abs=180)


def test_who_stayed_away_has_saved_up_nothing() -> None:
    fair = FairShare(claim=0)
    queues = enter(fair, *[Work("a", i) for i in range(100)])
    serve(fair, queues, 50)
    late = enter(fair, *[Work("b", 200 + i) for i in range(50)])
    assert serve(fair, queues | late, 10).count("b") in (5, 6)


def test_a_bounded_claim_is_served_first_and_then_turns_go_on() -> None:
    fair = FairShare(claim=100)
    flood = enter(fair, *[Work("f", i) for i in range(200)])
    serve(fair, flood, 50)
    late = enter(fair, *[Work("s", 200 + i) for i in range(50)])
    assert serve(fair, flood | late, 14) == "s" * 10 + "fsfs"


def test_a_claim_is_against_the_others_and_not_against_who_had_one_before() -> None:
    fair = FairShare(claim=100)
    flood = enter(fair, *[Work("f", i) for i in range(200)])
    serve(fair, flood, 50)
    first = enter(fair, *[Work("a", 200 + i) for i in range(50)])
    second = enter(fair, *[Work("b", 300 + i) for i in range(50)])
    served = serve(fair, flood | first | second, 20)
    assert (served.count("a"), served.count("b"), served.count("f")) == (10, 10, 0)


def test_nor_does_leaving_wipe_out_what_one_had() -> None:
    fair = FairShare(claim=0)
    queues = enter(fair, Work("a", 0, num_missing_tokens=1000), Work("b", 1), Work("b", 2))
    serve(fair, queues, 2)
    queues |= enter(fair, Work("a", 3))
    assert serve(fair, queues, 2) == "ba"


def test_more_urgent_classes_go_before_all_turns() -> None:
    fair = FairShare(claim=0)
    queues = enter(
        fair, Work("a", 0), Work("b", 1, priority=-1), Work("b", 2, priority=-1), Work("b", 3)
    )
    assert serve(fair, queues, 4) == "bbab"


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.integers(0, 2)), min_size=1)
)
def test_the_order_has_each_entry_once_and_each_tenants_in_their_places(
    entries: list[tuple[str, int, int]],
) -> None:
    fair = FairShare(claim=0)
    works = [
        Work(tenant, i, num_missing_tokens=tokens, priority=priority)
        for i, (tenant, tokens, priority) in enumerate(entries)
    ]
    queues = enter(fair, *works)
    for queue in queues.values():
        queue.sort(key=lambda work: work.place)
    ordered = list(fair.order(queues.values()))
    assert sorted(work.number for work in ordered) == list(range(len(works)))
    for tenant, queue in queues.items():
        assert [work for work in ordered if work.tenant == tenant] == queue
    assert [work.priority for work in ordered] == sorted(work.priority for work in works)


def test_a_million_tenants_who_came_once_are_forgotten() -> None:
    fair = FairShare(claim=0)
    for i in range(30_000):
        fair.enter(f"t{i}")
        fair.leave(f"t{i}")
    assert len(fair._served) <= 10_001


def test_who_is_ahead_and_who_is_behind_counts_those_who_left_too() -> None:
    fair = FairShare(claim=100)
    queues = enter(fair, Work("a", 0, num_missing_tokens=30), Work("a", 1), Work("b", 2))
    served = serve(fair, queues, 2)
    assert served == "ab"
    assert fair.num_ahead("a", [Work("a", 0), Work("b", 0)]) == 0  # b has left: nobody to be ahead
    enter(fair, Work("b", 3))
    assert fair.num_ahead("b", [Work("a", 0), Work("b", 0), Work("a", 1)]) == 2
    assert fair.num_ahead("a", [Work("a", 0), Work("b", 0)]) == 0
    assert fair.is_behind("b", ["a"])
    assert not fair.is_behind("a", ["b"])
    assert fair.is_behind("a", [])
