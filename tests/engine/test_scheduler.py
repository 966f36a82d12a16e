"""Scheduler: who runs, in what order, with which blocks; preemption; the prefix cache."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.batch import Batch, SampledToken
from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.output import FinishReason, TokenOutput
from engine.output_length import OutputLengths
from engine.request import Request, RequestStatus
from engine.sampling_params import SamplingParams
from engine.scheduler import Scheduler
from engine.step_time import StepTimeFit
from tests.fakes import FakeExecutor, expect_short_outputs

STOP_TOKEN = 5000  # never drawn by FakeExecutor, whose vocabulary is smaller


@dataclass
class Engine:
    """A scheduler over a simulated cache, with small numbers."""

    num_blocks: int = 64
    block_size: int = 4
    budget: int = 64
    max_num_seqs: int = 8
    caching: bool = True
    hopeful: bool = False
    """Forecast so little growth that blocks run out, and requests are preempted."""
    num_added: int = 0
    batches: list[Batch] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = EngineConfig(
            model_path=Path("unused"),
            model_name="fake",
            block_size=self.block_size,
            max_num_batched_tokens=self.budget,
            max_num_seqs=self.max_num_seqs,
        )
        lengths = OutputLengths()
        if self.hopeful:
            expect_short_outputs(lengths)
        self.pool = BlockPool(self.num_blocks, self.block_size, self.caching)
        self.scheduler = Scheduler(config, self.pool, StepTimeFit(), lengths)
        self.executor = FakeExecutor(self.num_blocks, self.block_size)

    def add(self, prompt: list[int], max_tokens: int = 4, salt: str = "") -> Request:
        """Queue a request named by its number."""
        request = Request(
            request_id=str(self.num_added),
            choice_index=0,
            prompt_token_ids=prompt,
            params=SamplingParams(),
            seed=0,
            max_tokens=max_tokens,
            stop_token_ids=frozenset({STOP_TOKEN}),
            cache_salt=salt,
        )
        self.num_added += 1
        self.scheduler.add(request)
        return request

    def step(self) -> list[TokenOutput]:
        """Run one step."""
        batch = self.scheduler.schedule()
        self.batches.append(batch)
        tokens = self.executor.execute(batch)
        self.scheduler.submitted(batch)
        return self.scheduler.update(batch, tokens)

    def scheduled(self) -> dict[str, int]:
        """Run one step; return how many tokens each request computed in it."""
        self.step()
        last = self.batches[-1].requests
        return {entry.request.request_id: entry.num_scheduled_tokens for entry in last}

    def run(self, limit: int = 1000) -> None:
        """Step until nothing is left."""
        for _ in range(limit):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError(f"not done after {limit} steps")


def prompt(length: int, start: int = 0) -> list[int]:
    return list(range(start, start + length))


def test_prompt_runs_in_chunks_of_the_budget() -> None:
    engine = Engine(budget=16)
    engine.add(prompt(40))
    assert [engine.scheduled()["0"] for _ in range(4)] == [16, 16, 8, 1]


def test_only_the_last_chunk_brings_a_token() -> None:
    engine = Engine(budget=16)
    engine.add(prompt(40))
    assert [len(engine.step()) for _ in range(3)] == [0, 0, 1]


def test_decodes_come_first_and_prefills_share_what_is_left() -> None:
    engine = Engine(budget=16)
    engine.add(prompt(10), max_tokens=8)
    engine.step()
    engine.add(prompt(20, 100))
    engine.add(prompt(5, 200))
    assert engine.scheduled() == {"0": 1, "1": 15}
    assert engine.scheduled() == {"0": 1, "1": 5, "2": 5}
    assert engine.scheduled() == {"0": 1, "1": 1, "2": 1}


def test_single_token_chunk_stands_before_longer_chunks() -> None:
    engine = Engine(budget=16)
    engine.add(prompt(10))
    engine.add(prompt(1, 100))
    engine.step()
    order = [entry.request.request_id for entry in engine.batches[-1].requests]
    assert order == ["1", "0"]


def test_no_more_than_max_num_seqs_run_at_once() -> None:
    engine = Engine(max_num_seqs=2)
    for i in range(5):
        engine.add(prompt(3, 10 * i))
    engine.run()
    assert max(len(batch.requests) for batch in engine.batches) == 2


def test_budget_below_max_num_seqs_starves_nobody() -> None:
    engine = Engine(budget=3, max_num_seqs=8)
    requests = [engine.add(prompt(5, 10 * i), max_tokens=6) for i in range(8)]
    engine.run()
    assert all(request.finish_reason is FinishReason.LENGTH for request in requests)
    assert max(batch.num_tokens for batch in engine.batches) == 3


def test_blocks_are_taken_on_demand_one_at_a_time() -> None:
    engine = Engine(block_size=4)
    request = engine.add(prompt(6), max_tokens=8)
    held = []
    while not request.finish_reason:
        engine.step()
        held.append(len(request.block_ids))
    # KV of positions 0-5, then one more each step; the last token's KV is never needed.
    assert held == [2, 2, 2, 3, 3, 3, 3, 0]


def test_request_that_finds_no_room_is_passed_only_so_often() -> None:
    engine = Engine(num_blocks=10, block_size=4)
    engine.add(prompt(16), max_tokens=8)
    engine.step()
    big = engine.add(prompt(32, 100), max_tokens=4)
    num_small = 0
    while big.status is RequestStatus.WAITING:
        engine.add(prompt(2, 200 + num_small), max_tokens=4)
        num_small += 1
        engine.step()
    assert 0 < big.num_overtakes <= 64 < num_small
    engine.run()
    assert big.num_output_tokens == 4


def test_admission_waits_for_room_for_the_whole_prompt_and_a_watermark() -> None:
    engine = Engine(num_blocks=10, block_size=4, budget=8)
    engine.add(prompt(14), max_tokens=3)
    engine.step()
    engine.step()  # holds 4 blocks
    exact = engine.add(prompt(21, 100), max_tokens=2)
    engine.step()
    assert exact.status is RequestStatus.WAITING  # 4 + 6 would leave no spare block
    engine.scheduler.end(exact, FinishReason.ABORT)
    fitting = engine.add(prompt(16, 100), max_tokens=2)
    engine.step()
    assert fitting.status is RequestStatus.RUNNING
    engine.run()
    assert engine.scheduler.counts.num_preemptions == 0


def test_watermark_never_stops_the_only_request() -> None:
    engine = Engine(num_blocks=4, block_size=4)
    request = engine.add(prompt(15), max_tokens=2)
    engine.run()
    assert request.finish_reason is FinishReason.LENGTH


def test_preempted_request_keeps_its_tokens_and_returns_its_blocks() -> None:
    engine = Engine(hopeful=True, num_blocks=6, block_size=4)
    old = engine.add(prompt(8), max_tokens=12)
    young = engine.add(prompt(8, 100), max_tokens=12)
    kept: list[int] = []
    while young.num_preemptions == 0:
        kept = list(young.token_ids)
        engine.step()
    assert young.status is RequestStatus.WAITING
    assert young.token_ids == kept
    assert young.num_output_tokens > 0
    assert young.block_ids == []
    assert young.num_computed_tokens == 0
    held = len(old.block_ids)
    assert engine.pool.num_usable_blocks == engine.num_blocks - held
    engine.run()
    assert old.num_preemptions == 0
    assert young.num_output_tokens == 12


def test_youngest_is_preempted_and_first_to_return() -> None:
    engine = Engine(hopeful=True, num_blocks=10, block_size=4)
    requests = [engine.add(prompt(8, 100 * i), max_tokens=16) for i in range(3)]
    late = engine.add(prompt(4, 900), max_tokens=4)
    engine.run()
    preemptions = [request.num_preemptions for request in requests]
    assert preemptions[0] == 0
    assert preemptions[2] >= 1
    assert preemptions == sorted(preemptions)
    for request in requests:
        assert request.num_output_tokens == 16
    assert late.num_output_tokens == 4


def test_preempted_request_returns_before_later_ones() -> None:
    engine = Engine(hopeful=True, num_blocks=7, block_size=4, max_num_seqs=2)
    engine.add(prompt(8), max_tokens=16)
    young = engine.add(prompt(8, 100), max_tokens=8)
    late = engine.add(prompt(2, 900), max_tokens=4)
    while late.status is RequestStatus.WAITING:
        assert engine.scheduler.has_work
        engine.step()
    assert young.num_preemptions > 0
    assert young.status is not RequestStatus.WAITING
    engine.run()


def test_starved_youngest_sits_out_and_keeps_its_blocks() -> None:
    engine = Engine(hopeful=True, num_blocks=6, block_size=4)
    engine.add(prompt(9), max_tokens=8)
    young = engine.add(prompt(3, 100), max_tokens=9)
    steps_out = 0
    while engine.scheduler.has_work:
        before = young.num_computed_tokens
        engine.step()
        is_live = young.status is RequestStatus.RUNNING
        steps_out += is_live and young.num_computed_tokens == before
    assert young.num_preemptions == 0
    assert steps_out > 0
    assert young.num_output_tokens == 9


def test_recompute_after_preemption_uses_what_is_still_cached() -> None:
    engine = Engine(hopeful=True, num_blocks=9, block_size=4)
    engine.add(prompt(4), max_tokens=10)
    young = engine.add(prompt(20, 100), max_tokens=8)
    while young.num_preemptions == 0:
        engine.step()
    while young.status is RequestStatus.WAITING:
        engine.step()
    computed = next(e for e in engine.batches[-1].requests if e.request is young)
    assert computed.num_scheduled_tokens < young.num_tokens
    engine.run()
    assert young.num_cached_tokens == 0  # tells of the first admission only
    assert engine.scheduler.counts.num_cache_hit_tokens == 0


def test_cached_prefix_is_reused_but_for_the_last_token() -> None:
    engine = Engine(block_size=4)
    engine.add(prompt(16), max_tokens=1)
    engine.run()
    again = engine.add(prompt(16), max_tokens=1)
    longer = engine.add(prompt(18), max_tokens=1)
    assert engine.scheduled() == {"1": 4, "2": 2}
    assert again.num_cached_tokens == 12
    assert longer.num_cached_tokens == 16
    assert engine.scheduler.counts.num_cache_queried_tokens == 16 + 16 + 18
    assert engine.scheduler.counts.num_cache_hit_tokens == 12 + 16


def test_half_computed_block_is_not_in_the_cache() -> None:
    engine = Engine(block_size=4, budget=6)
    request = engine.add(prompt(10))
    engine.step()
    assert [engine.pool.is_cached(block_id) for block_id in request.block_ids] == [True, False]


def test_output_blocks_are_cached_for_the_next_turn() -> None:
    engine = Engine(block_size=4)
    first = engine.add(prompt(6), max_tokens=7)
    engine.run()
    turn = engine.add([*first.token_ids, 7, 8], max_tokens=1)
    engine.run()
    # 13 tokens, the last of which was never computed: three full blocks.
    assert turn.num_cached_tokens == 12


def test_running_requests_share_blocks_without_sharing_writes() -> None:
    engine = Engine(block_size=4)
    first = engine.add(prompt(10), max_tokens=20)
    engine.step()
    second = engine.add(prompt(10), max_tokens=20)
    engine.step()
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.block_ids[2] != first.block_ids[2]
    assert engine.pool.ref_count(first.block_ids[0]) == 2
    engine.run()
    assert engine.pool.num_usable_blocks == engine.num_blocks


def test_salt_keeps_prefixes_apart() -> None:
    engine = Engine(block_size=4)
    engine.add(prompt(12), max_tokens=1, salt="a")
    engine.run()
    other = engine.add(prompt(12), max_tokens=1, salt="b")
    same = engine.add(prompt(12), max_tokens=1, salt="a")
    engine.run()
    assert other.num_cached_tokens == 0
    assert same.num_cached_tokens == 8


def test_without_caching_nothing_is_hashed_or_reused() -> None:
    engine = Engine(caching=False)
    requests = [engine.add(prompt(16), max_tokens=6) for _ in range(2)]
    engine.run()
    assert all(request.block_hashes == [] for request in requests)
    assert engine.pool.num_free_blocks == engine.num_blocks
    assert engine.scheduler.counts.num_cache_queried_tokens == 0


def test_request_that_does_not_fit_leaves_the_cache_untouched() -> None:
    engine = Engine(num_blocks=8, block_size=4)
    engine.add(prompt(8), max_tokens=1)
    engine.run()
    engine.add(prompt(3, 500), max_tokens=12)
    engine.step()
    before = (engine.pool.num_free_blocks, engine.pool.num_evictable_blocks)
    waiting = engine.add(prompt(28), max_tokens=2)
    engine.scheduler.schedule()
    assert waiting.status is RequestStatus.WAITING
    assert waiting.block_ids == []
    assert (engine.pool.num_free_blocks, engine.pool.num_evictable_blocks) == before


def test_stop_token_ends_with_stop_and_is_part_of_the_output() -> None:
    engine = Engine()
    engine.add(prompt(3), max_tokens=5)
    batch = engine.scheduler.schedule()
    engine.scheduler.submitted(batch)
    (output,) = engine.scheduler.update(batch, [SampledToken(STOP_TOKEN)])
    assert output.token_ids == [STOP_TOKEN]
    assert output.finish_reason is FinishReason.STOP
    assert not engine.scheduler.has_work


def test_outputs_number_their_tokens() -> None:
    engine = Engine()
    engine.add(prompt(3), max_tokens=3)
    outputs = [output for _ in range(3) for output in engine.step()]
    assert [output.index for output in outputs] == [0, 1, 2]
    assert [output.finish_reason for output in outputs] == [None, None, FinishReason.LENGTH]


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_abort_returns_all_blocks_at_once(num_steps: int) -> None:
    engine = Engine(budget=8, caching=False)
    request = engine.add(prompt(12), max_tokens=9)
    for _ in range(num_steps):
        engine.step()
    engine.scheduler.end(request, FinishReason.ABORT)
    assert request.finish_reason is FinishReason.ABORT
    assert engine.pool.num_free_blocks == engine.num_blocks
    assert not engine.scheduler.has_work
    assert engine.scheduler.num_queued_prefill_tokens == 0


def test_queued_prefill_tokens_follow_waiting_and_running() -> None:
    engine = Engine(budget=16, max_num_seqs=1)
    engine.add(prompt(40), max_tokens=2)
    engine.add(prompt(6, 100), max_tokens=1)
    counts = []
    while engine.scheduler.has_work:
        counts.append(engine.scheduler.num_queued_prefill_tokens)
        engine.step()
    assert counts == [46, 30, 14, 6, 6]
    assert engine.scheduler.num_queued_prefill_tokens == 0


def test_executor_that_owes_a_token_is_found_out() -> None:
    engine = Engine()
    engine.add(prompt(3))
    batch = engine.scheduler.schedule()
    engine.scheduler.submitted(batch)
    with pytest.raises(AssertionError, match="owes a token"):
        engine.scheduler.update(batch, [None])
