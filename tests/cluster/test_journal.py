"""What a request's journal hands on, what it asks of the next replica, and when it gives up."""

import pytest

from cluster.journal import MAX_LOST, MIN_PROGRESS, Journal, Poisonous
from cluster.quarantine import MAX_REQUESTS, QUARANTINE_S, Quarantine
from cluster.retry_budget import MAX_SAVED, RetryBudget
from engine.errors import Overloaded, ReplicaLost
from engine.output import FinishReason, TokenOutput
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.cluster.token_fakes import output
from tests.fakes import FakeClock

LOST = ReplicaLost("It died.", "Again.")


def make_journal(**params: object) -> Journal:
    settings = SamplingParams(**params)  # type: ignore[arg-type]
    return Journal(GenerateRequest(request_id="r", prompt_token_ids=[1], params=settings))


def take(journal: Journal, index: int, choice: int = 0, end: FinishReason | None = None) -> bool:
    return journal.take(output("r.0", index, end, choice)) is not None


def test_attempts_have_ids_of_their_own_and_bring_along_what_has_come() -> None:
    journal = make_journal(n=3)
    first = journal.next_attempt()
    assert (first.request_id, first.emitted, first.num_live_choices) == ("r.0", [], 3)
    assert not journal.has_begun
    assert take(journal, 0, choice=0)
    assert take(journal, 1, choice=0, end=FinishReason.STOP)
    assert take(journal, 0, choice=2)
    second = journal.next_attempt()
    assert journal.has_begun
    assert (second.request_id, second.emitted) == ("r.1", [None, [], [1000]])
    assert (second.num_live_choices, second.num_emitted_tokens) == (2, 1)
    assert take(journal, 1, choice=2)
    assert journal.next_attempt().emitted == [None, [], [1000, 1001]]
    assert second.emitted == [None, [], [1000]]


def test_a_seed_is_fixed_once_for_what_is_drawn() -> None:
    journal = make_journal(temperature=1.0)
    seed = journal.next_attempt().params.seed
    assert seed is not None
    assert journal.next_attempt().params.seed == seed
    assert make_journal(temperature=1.0).next_attempt().params.seed != seed
    assert make_journal(temperature=1.0, seed=7).next_attempt().params.seed == 7
    assert make_journal(temperature=0.0).next_attempt().params.seed is None


def test_what_comes_twice_is_no_news_and_what_is_missing_is_a_loss() -> None:
    journal = make_journal()
    journal.next_attempt()
    assert take(journal, 0)
    assert not take(journal, 0)
    with pytest.raises(ReplicaLost, match="token 1 of choice 0 is missing"):
        take(journal, 2)
    assert take(journal, 1, end=FinishReason.LENGTH)
    assert not journal.is_open
    assert not take(journal, 2)


def test_a_replica_may_not_end_what_is_wanted() -> None:
    journal = make_journal(n=2)
    journal.next_attempt()
    journal.abort(1)
    assert journal.take(TokenOutput("r.0", 1, 0, [], None, FinishReason.ABORT)) is not None
    with pytest.raises(ReplicaLost):
        journal.take(TokenOutput("r.0", 0, 0, [], None, FinishReason.ABORT))
    assert journal.next_attempt().emitted == [[], None]


def test_choices_that_nobody_wants_end_with_their_replica() -> None:
    journal = make_journal(n=2)
    journal.next_attempt()
    assert take(journal, 0, choice=1)
    journal.abort(1)
    (end,) = journal.end_unwanted()
    assert (end.choice_index, end.index, end.finish_reason) == (1, 1, FinishReason.ABORT)
    assert journal.end_unwanted() == []
    assert journal.next_attempt().emitted == [[], None]


def test_cached_tokens_are_those_of_the_attempt_that_began() -> None:
    journal = make_journal(n=2)
    journal.next_attempt()
    seen = journal.take(TokenOutput("r.0", 0, 0, [5], num_cached_tokens=16))
    assert seen is not None
    assert seen.num_cached_tokens == 16
    journal.next_attempt()
    seen = journal.take(TokenOutput("r.1", 0, 1, [5], num_cached_tokens=32))
    assert seen is not None
    assert seen.num_cached_tokens == 0
    seen = journal.take(TokenOutput("r.1", 1, 0, [5], num_cached_tokens=32))
    assert seen is not None
    assert seen.num_cached_tokens == 32


def test_two_replicas_die_of_a_request_and_no_third() -> None:
    journal = make_journal()
    journal.next_attempt()
    journal.lose(LOST, was_accepted=True)
    journal.next_attempt()
    with pytest.raises(Poisonous) as caught:
        journal.lose(LOST, was_accepted=True)
    assert caught.value.__cause__ is LOST


def test_who_gets_on_between_two_losses_or_had_not_arrived_is_not_suspected() -> None:
    journal = make_journal()
    journal.lose(LOST, was_accepted=True)
    journal.lose(LOST, was_accepted=False)
    index = 0
    while journal.num_lost < MAX_LOST:
        journal.next_attempt()
        for _ in range(MIN_PROGRESS):
            assert take(journal, index)
            index += 1
        journal.lose(LOST, was_accepted=True)
    with pytest.raises(Poisonous):
        journal.lose(LOST, was_accepted=False)


def test_a_few_tokens_before_each_loss_clear_nobody() -> None:
    journal = make_journal()
    journal.next_attempt()
    for index in range(MIN_PROGRESS):
        assert take(journal, index)
    journal.lose(LOST, was_accepted=True)
    journal.next_attempt()
    assert take(journal, MIN_PROGRESS)
    journal.lose(LOST, was_accepted=True)
    journal.next_attempt()
    assert take(journal, MIN_PROGRESS + 1)
    with pytest.raises(Poisonous, match="3 replicas"):
        journal.lose(LOST, was_accepted=True)


def test_refusals_are_its_answer_only_before_it_has_begun() -> None:
    full = Overloaded("Full.", "Wait.")
    journal = make_journal()
    for _ in range(3):
        journal.refuse(full)
    with pytest.raises(Overloaded):
        journal.refuse(full)
    assert take(journal, 0)
    journal.refuse(full)


def test_quarantine_knows_a_request_again_for_a_while() -> None:
    clock = FakeClock()
    quarantine = Quarantine(clock)

    def ask(prompt: list[int], **params: object) -> GenerateRequest:
        settings = SamplingParams(**params)  # type: ignore[arg-type]
        return GenerateRequest(request_id="r", prompt_token_ids=prompt, params=settings)

    quarantine.check(ask([1, 2]))
    quarantine.add(ask([1, 2], seed=1))
    with pytest.raises(Poisonous, match="this very request"):
        quarantine.check(ask([1, 2], seed=2))
    quarantine.check(ask([1, 3], seed=1))
    quarantine.check(ask([1, 2], n=2))
    clock.advance(QUARANTINE_S + 1)
    quarantine.check(ask([1, 2]))
    for i in range(MAX_REQUESTS + 1):
        quarantine.add(ask([i]))
    quarantine.check(ask([0]))
    with pytest.raises(Poisonous):
        quarantine.check(ask([1]))


def test_retries_are_a_share_of_the_requests() -> None:
    clock = FakeClock()
    budget = RetryBudget(clock)

    def taken() -> int:
        count = 0
        while budget.take():
            count += 1
        return count

    assert taken() == MAX_SAVED
    for _ in range(500):
        budget.note_request()
    assert taken() in (49, 50)  # tenths do not add up exactly
    clock.advance(7)
    assert taken() == 7
    clock.advance(10_000)
    assert taken() == MAX_SAVED
