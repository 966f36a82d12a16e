"""What is remembered of a placement."""

import math
from dataclasses import replace

from cluster.decision import Decision, DecisionLog
from cluster.placement import Reason, choose
from cluster.request_need import RequestNeed
from tests.cluster.views import Row, fleet, view

NEED = RequestNeed(request_id="a.0", num_prompt_tokens=64)


def decide(*rows: Row) -> Decision:
    seen = fleet(*rows)
    choice = choose(seen, NEED, 0)
    assert choice is not None
    return Decision.of(NEED, seen, choice)


def test_the_chosen_comes_first_with_the_numbers_of_the_runners_up() -> None:
    busy = [view(f"busy{i}", num_active=50 + i) for i in range(9)]
    decision = decide(*busy, view("best", num_cached_blocks=3, num_available_blocks=900))
    assert decision.reason is Reason.PREFIX
    assert (decision.num_blocks, decision.num_considered) == (5, 10)
    assert [c.replica_id for c in decision.candidates] == ["best", "busy0", "busy1"]
    best, second, third = decision.candidates
    assert (best.num_cached_blocks, best.num_available_blocks, best.num_active) == (3, 900, 0)
    assert best.cost < second.cost < third.cost


def test_who_was_not_considered_is_not_named() -> None:
    decision = decide(
        view("a"), view("full", num_available_blocks=0, num_active=9), view("away", may_serve=False)
    )
    assert [c.replica_id for c in decision.candidates] == ["a"]
    assert all(c.cost < math.inf for c in decision.candidates)


def test_of_equals_the_one_chosen_comes_first() -> None:
    seen = fleet(view("a"), view("b"))
    choice = choose(seen, NEED, 1)
    assert choice is not None
    assert [c.replica_id for c in Decision.of(NEED, seen, choice).candidates] == ["b", "a"]


def test_the_log_finds_all_attempts_and_forgets_the_oldest() -> None:
    log, decision = DecisionLog(max_decisions=3), decide(view("a"), view("b"))
    for request_id in ("x.0", "y.0", "y.1", "z"):
        log.add(replace(decision, request_id=request_id))
    assert log.find("x") == []
    assert [d.request_id for d in log.find("y")] == ["y.0", "y.1"]
    assert [d.request_id for d in log.find("y.1")] == ["y.1"]
    assert [d.request_id for d in log.find("z")] == ["z"]
    assert log.num_by_reason[Reason.COST] == 4


def test_the_log_finds_the_prompts_of_one_answer_and_no_others() -> None:
    log, decision = DecisionLog(), decide(view("a"), view("b"))
    parts = ["cmpl-a-0.0", "cmpl-a-1.0", "cmpl-a-1.1"]
    for request_id in (*parts, "cmpl-ab.0", "chatcmpl-a.0", "cmpl-a-b.0"):
        log.add(replace(decision, request_id=request_id))
    assert [d.request_id for d in log.find("cmpl-a")] == parts
    assert [d.request_id for d in log.find("cmpl-a-1")] == parts[1:]
    assert log.find("cmpl") == []
    assert log.find("cmpl-.") == []
