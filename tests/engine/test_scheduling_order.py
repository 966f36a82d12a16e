"""Who goes before whom: classes of service, those that do not fit, prefixes that are being made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine.batch import Batch
from engine.block_pool import BlockPool
from engine.block_tables import BlockTables
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.output import FinishReason
from engine.output_length import OutputLengths
from engine.preemption import Preemption
from engine.request import GenerateRequest, Request, RequestStatus
from engine.sampling_params import SamplingParams
from engine.step_time import StepTimeFit
from tests.fakes import FakeClock, FakeExecutor, expect_short_outputs


@dataclass
class Engine:
    """A core over a simulated cache; says what each step computed."""

    num_blocks: int = 64
    budget: int = 64
    max_num_seqs: int = 8
    caching: bool = True
    batches: list[Batch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.executor = FakeExecutor(self.num_blocks, 4, on_execute=self.batches.append)
        self.clock = FakeClock()
        config = EngineConfig(
            model_path=Path("unused"),
            model_name="fake",
            block_size=4,
            max_num_batched_tokens=self.budget,
            max_num_seqs=self.max_num_seqs,
            enable_prefix_caching=self.caching,
        )
        self.core = EngineCore(
            config,
            self.executor,
            max_model_len=1000,
            eos_token_ids=frozenset(),
            vocab_size=1000,
            clock=self.clock,
        )
        self.scheduler = self.core._scheduler
        self.lengths = self.scheduler._lengths

    def add(self, name: str, prompt: list[int], priority: int = 0, **params: Any) -> list[Request]:
        """Queue a request; return its choices."""
        self.core.add(
            GenerateRequest(
                request_id=name,
                prompt_token_ids=prompt,
                params=SamplingParams(**params),
                priority=priority,
            )
        )
        return list(self.core._live[name].values())

    def step(self) -> dict[str, int]:
        """Run one step; return the tokens that each request computed in it."""
        self.core.step()
        return {
            f"{entry.request.request_id}{entry.request.choice_index or ''}": (
                entry.num_scheduled_tokens
            )
            for entry in self.batches[-1].requests
        }

    def run(self) -> None:
        """Step until nothing is left."""
        while self.core.has_work:
            self.core.step()
        snapshot = self.core.snapshot()
        assert snapshot.num_usable_blocks == snapshot.num_blocks


def prompt(length: int, start: int = 0) -> list[int]:
    return list(range(start, start + length))


def test_higher_class_displaces_lower_ones_no_more_than_it_must() -> None:
    engine = Engine(num_blocks=16)
    low = [engine.add(f"low{i}", prompt(16, 100 * i), priority=1, max_tokens=4)[0] for i in (1, 2)]
    engine.step()
    engine.add("high", prompt(20, 900), max_tokens=4)
    assert engine.step()["high"] == 20
    assert sorted(request.num_preemptions for request in low) == [0, 1]
    engine.run()


def test_nobody_is_displaced_by_a_request_that_could_not_run_all_the_same() -> None:
    engine = Engine(num_blocks=20)
    for _ in range(500):
        engine.lengths.observe(40)
    (low,) = engine.add("low", prompt(8, 100), priority=1, max_tokens=8)
    engine.step()
    engine.add("high", prompt(24, 200), max_tokens=40)
    engine.step()
    # Its blocks would fit at once in place of "low", but not its growth beside that of "high".
    engine.add("higher", prompt(24, 300), max_tokens=40)
    engine.step()
    assert low.num_preemptions == 0
    engine.run()


def test_blocks_that_a_running_prompt_takes_meanwhile_are_not_counted_twice() -> None:
    engine = Engine(num_blocks=24, budget=16)
    expect_short_outputs(engine.lengths)
    engine.add("decodes", prompt(8), max_tokens=8)
    engine.step()
    (prefills,) = engine.add("prefills", prompt(24, 200), max_tokens=1)
    assert engine.step() == {"decodes": 1, "prefills": 15}
    # 3 and 6 blocks for those that run and one for growth leave 14: too few for "big" with 15.
    (big,) = engine.add("big", prompt(60, 100), max_tokens=1)
    prefills.arrival_s = 1.0  # its turn is between the two that wait
    engine.clock.advance(2)
    engine.add("fits", prompt(52, 300), max_tokens=1)
    assert engine.step() == {"decodes": 1, "prefills": 9, "fits": 6}
    assert big.num_overtakes == 1
    engine.run()


def test_request_that_shares_a_running_prefix_fits_beside_lower_classes() -> None:
    engine = Engine(num_blocks=14)
    expect_short_outputs(engine.lengths)
    engine.add("maker", prompt(30), max_tokens=6)
    (low,) = engine.add("low", prompt(4, 100), priority=1, max_tokens=4)
    engine.step()
    engine.add("sharer", [*prompt(28), 500], max_tokens=2)
    assert engine.step()["sharer"] == 1
    assert low.num_preemptions == 0
    engine.run()


def test_higher_class_does_not_wait_for_a_prefix_that_a_lower_one_computes() -> None:
    engine = Engine(budget=8)
    engine.add("low", prompt(40), priority=1, max_tokens=1)
    engine.step()
    engine.add("high", prompt(40), max_tokens=1)
    assert "high" in engine.step()
    # And of its own class, others wait for it.
    engine.add("high2", prompt(40), max_tokens=1)
    assert "high2" not in engine.step()
    engine.run()


def test_running_prefills_go_on_while_the_first_in_line_waits_for_room() -> None:
    engine = Engine(num_blocks=20, budget=8)
    engine.add("decodes", prompt(8), max_tokens=20)
    engine.step()
    (big,) = engine.add("big", prompt(60, 100), max_tokens=4)
    engine.add("prefills", prompt(24, 200), max_tokens=4)
    assert engine.step() == {"decodes": 1, "prefills": 7}
    big.num_overtakes = 64
    assert engine.step() == {"decodes": 1, "prefills": 7}
    engine.run()


def test_choice_copies_the_prompt_of_whoever_has_it() -> None:
    engine = Engine(budget=8, max_num_seqs=3, caching=False)
    first, second, third = engine.add("a", prompt(30), n=3, max_tokens=20)
    while not (second.num_output_tokens and third.status is RequestStatus.WAITING):
        if first.num_output_tokens and not engine.core._live.get("seat"):
            engine.add("seat", [1], priority=-1, max_tokens=200)
        engine.step()
    engine.scheduler._preempt(first)
    engine.step()
    assert 0 < first.num_computed_tokens < 29
    assert engine.scheduler._tables.find_prefix(third) == second.block_ids[:7]
    engine.run()


def test_who_does_not_fit_leaves_the_order_of_eviction_alone() -> None:
    engine = Engine(num_blocks=12)
    engine.add("old", prompt(8), max_tokens=1)
    engine.run()
    engine.add("new", prompt(8, 100), max_tokens=1)
    engine.run()
    engine.add("runs", prompt(20, 200), max_tokens=8)
    engine.step()
    (waits,) = engine.add("waits", [*prompt(8), *prompt(28, 300)], max_tokens=8)
    engine.step()
    assert waits.status is RequestStatus.WAITING
    engine.core._pool.allocate(engine.core._pool.num_free_blocks + 1)
    old, new = (engine.core._pool.count_cached(waits.block_hashes[:2]), 2)
    assert old < new


def test_each_running_request_is_forecast_once_for_all_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(num_blocks=100, max_num_seqs=100)
    for _ in range(500):
        engine.lengths.observe(100)
    for i in range(100):
        engine.add(str(i), [i] * 8, max_tokens=200)
    engine.step()
    asked: list[int] = []
    remaining = OutputLengths.remaining

    def count(self: OutputLengths, num_tokens: int, max_tokens: int) -> float:
        asked.append(num_tokens)
        return remaining(self, num_tokens, max_tokens)

    monkeypatch.setattr(OutputLengths, "remaining", count)
    engine.step()
    assert engine.scheduler.num_waiting > 64
    assert len(asked) <= engine.scheduler.num_running + 64


def test_nobody_gives_up_blocks_that_stay_with_others() -> None:
    pool = BlockPool(4, 4)
    tables = BlockTables(pool, "fake")
    preemption = Preemption(tables, pool, StepTimeFit())

    def running(arrival: int, block_ids: list[int]) -> Request:
        request = Request(str(arrival), 0, [1] * 8, SamplingParams(), 0, 4, frozenset())
        request.arrival = arrival
        request.block_ids = block_ids
        return request

    first, second = running(0, pool.allocate(2) or []), running(1, pool.allocate(2) or [])
    pool.share(first.block_ids)
    third = running(2, list(first.block_ids))
    assert preemption.victim(second, [first, second, third]) is None
    pool.free(first.block_ids)
    assert preemption.victim(second, [second, third]) is third


def test_requests_that_never_ran_teach_nothing_about_lengths() -> None:
    engine = Engine(max_num_seqs=1)
    engine.add("runs", prompt(4), max_tokens=30)
    engine.step()
    before = engine.lengths.remaining(0, 1000)
    for i in range(2000):
        engine.add(str(i), prompt(4, 100), max_tokens=30)
        engine.core.abort(str(i))
    assert engine.lengths.remaining(0, 1000) == before


def test_ended_choices_are_free_without_the_garbage_collector() -> None:
    engine = Engine()
    choices = engine.add("a", prompt(9), n=3, max_tokens=4)
    engine.run()
    assert all(choice.finish_reason is FinishReason.LENGTH for choice in choices)
    assert not any(choice.siblings for choice in choices)


def test_deadlines_of_ended_requests_do_not_pile_up() -> None:
    engine = Engine()
    for i in range(5000):
        engine.core.add(
            GenerateRequest(
                request_id=str(i),
                prompt_token_ids=[1],
                params=SamplingParams(max_tokens=1),
                deadline_s=1e9,
            )
        )
        engine.core.step()
    assert len(engine.core._deadlines) <= 1025
