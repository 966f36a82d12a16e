"""What the engine does with KV blocks beyond handing them out: share, fork, save, forecast."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.block_move import MoveKind
from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.host_tier import HostTier
from engine.kv_forecast import Peak
from engine.output_length import OutputLengths
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.fakes import FakeClock, FakeExecutor, expect_short_outputs


def make_core(
    executor: FakeExecutor, max_num_batched_tokens: int = 2048, caching: bool = True
) -> EngineCore:
    config = EngineConfig(
        model_path=Path("unused"),
        model_name="fake",
        block_size=4,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_prefix_caching=caching,
    )
    return EngineCore(
        config,
        executor,
        max_model_len=4096,
        eos_token_ids=frozenset(),
        vocab_size=1000,
        clock=FakeClock(),
    )


def ask(name: str, prompt: list[int], *, max_tokens: int, n: int = 1) -> GenerateRequest:
    params = SamplingParams(n=n, max_tokens=max_tokens)
    return GenerateRequest(request_id=name, prompt_token_ids=prompt, params=params)


def run(core: EngineCore) -> dict[tuple[str, int], list[int]]:
    tokens: dict[tuple[str, int], list[int]] = {}
    while core.has_work:
        for output in core.step().outputs:
            tokens.setdefault((output.request_id, output.choice_index), []).extend(output.token_ids)
    return tokens


def test_requests_that_arrive_together_compute_their_common_prefix_once() -> None:
    executor = FakeExecutor(100, 4)
    core = make_core(executor)
    prefix = list(range(40))
    for i in range(5):
        core.add(ask(str(i), [*prefix, 100 + i, 200 + i], max_tokens=1))
    run(core)
    assert executor.num_computed_tokens == 40 + 5 * 2


def test_requests_without_a_common_prefix_do_not_wait_for_each_other() -> None:
    executor = FakeExecutor(100, 4)
    core = make_core(executor)
    for i in range(3):
        core.add(ask(str(i), [i] * 20, max_tokens=1))
    assert core.step().num_scheduled_requests == 3


def test_who_waits_for_a_prefix_goes_on_when_its_maker_is_gone() -> None:
    core = make_core(FakeExecutor(100, 4), max_num_batched_tokens=8)
    core.add(ask("maker", list(range(40)), max_tokens=1))
    core.add(ask("waits", [*range(40), 50], max_tokens=1))
    core.step()
    core.abort("maker")
    assert len(run(core)["waits", 0]) == 1


@pytest.mark.parametrize("num_prompt_tokens", [20, 21, 22, 24])
@pytest.mark.parametrize("caching", [True, False])
def test_choices_share_the_prompt_and_copy_its_last_block(
    num_prompt_tokens: int, caching: bool
) -> None:
    executor = FakeExecutor(100, 4)
    core = make_core(executor, caching=caching)
    core.add(ask("a", list(range(num_prompt_tokens)), n=4, max_tokens=6))
    run(core)
    # The last prompt token is computed by each choice, and so is all that they generate.
    assert executor.num_computed_tokens == num_prompt_tokens + 3 + 4 * 5
    has_partial_block = (num_prompt_tokens - 1) % 4 != 0
    assert executor.num_moves[MoveKind.COPY] == (3 if has_partial_block else 0)


def test_evicted_blocks_come_back_from_the_host() -> None:
    executor = FakeExecutor(12, 4, num_host_blocks=50)
    core = make_core(executor)
    conversation = list(range(33))
    core.add(ask("first", conversation, max_tokens=1))
    run(core)
    core.add(ask("other", list(range(500, 540)), max_tokens=1))  # drives it out
    run(core)
    before = executor.num_computed_tokens
    core.add(ask("again", conversation, max_tokens=1))
    run(core)
    assert executor.num_moves[MoveKind.RESTORE] > 0
    restored = 4 * executor.num_moves[MoveKind.RESTORE]
    assert executor.num_computed_tokens - before <= 33 - restored


def test_preempted_request_is_brought_back_instead_of_computed_again() -> None:
    def num_computed(num_host_blocks: int) -> int:
        executor = FakeExecutor(20, 4, num_host_blocks=num_host_blocks)
        core = make_core(executor)
        expect_short_outputs(core._scheduler._lengths)
        for i in range(4):
            core.add(ask(str(i), [i] * 12, max_tokens=24))
        run(core)
        assert core.snapshot().num_preemptions > 0
        return executor.num_computed_tokens

    assert num_computed(num_host_blocks=100) < num_computed(num_host_blocks=0)


def test_nothing_is_saved_where_copying_costs_more_than_computing() -> None:
    host = HostTier(8)
    pool = BlockPool(2, 4, host=host)
    host.set_price(move_s=1.0, compute_s=0.5)
    (block,) = pool.allocate(1) or []
    pool.register(block, b"a")
    pool.free([block], keep=True)
    pool.allocate(2)
    assert pool.take_moves() == []


def test_host_tier_makes_room_by_least_recent_use() -> None:
    host = HostTier(2)
    first, second = host.put(b"a"), host.put(b"b")
    assert {first, second} == {0, 1}
    assert host.get(b"a") == first
    assert host.put(b"c") == second
    assert b"b" not in host
    assert host.put(b"a") is None


def test_eviction_spares_prefixes_that_were_found_before() -> None:
    pool = BlockPool(10, 4)
    shared = pool.allocate(3) or []
    for i, block in enumerate(shared):
        pool.register(block, b"shared%d" % i)
    pool.free(shared)
    pool.free(pool.lookup([b"shared0", b"shared1", b"shared2"]))
    for scan in range(20):  # prompts that come once
        once = pool.allocate(5) or []
        for i, block in enumerate(once):
            pool.register(block, b"once%d.%d" % (scan, i))
        pool.free(once)
    assert pool.count_cached([b"shared0", b"shared1", b"shared2"]) == 3


def test_hot_blocks_make_room_when_they_are_too_many() -> None:
    pool = BlockPool(10, 4)
    for i in range(10):
        (block,) = pool.allocate(1) or []
        pool.register(block, b"%d" % i)
        pool.free([block])
        pool.free(pool.lookup([b"%d" % i]))
    pool.allocate(2)
    assert pool.count_cached([b"9"]) == 1
    assert pool.count_cached([b"0"]) == 0


def test_forecast_is_the_peak_and_not_the_sum() -> None:
    # The short one gives its blocks back before the long one has grown.
    assert Peak([2], [4], block_size=1).with_one_more(10, 4) == 4 + 10
    assert Peak([10], [4], block_size=1).with_one_more(2, 8) == 8 + 4 + 2 * 2
    assert Peak([], [], block_size=16).with_one_more(0, 7) == 7


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=7))
def test_forecast_of_one_more_is_that_of_all_together(sequences: list[tuple[int, int]]) -> None:
    def held_just_before(end: int) -> int:
        return sum(known + end for growth, known in sequences if growth >= end)

    (growth, known), *others = sequences
    peak = Peak([g for g, _ in others], [k for _, k in others], block_size=1)
    expected = max(held_just_before(end) for end, _ in sequences)
    assert peak.with_one_more(growth, known) == expected


def test_expected_length_is_learned_and_conditional() -> None:
    lengths = OutputLengths()
    for _ in range(300):
        lengths.observe(10)
        lengths.observe(200)
    assert lengths.remaining(0, 1000) == pytest.approx(105, rel=0.15)
    assert lengths.remaining(50, 1000) == pytest.approx(150, rel=0.15)
    assert lengths.remaining(50, 60) == 10
    assert lengths.remaining(900, 10_000) == 450


def test_admission_by_predicted_need_avoids_preemption_without_reserving_everything() -> None:
    def run_with(lengths_seen: int) -> tuple[int, int]:
        executor = FakeExecutor(64, 4)
        core = make_core(executor)
        for _ in range(300):
            core._scheduler._lengths.observe(lengths_seen)
        for i in range(12):
            core.add(ask(str(i), [i] * 8, max_tokens=240 if i % 2 else 40))
            # Far fewer tokens than max_tokens, as real traffic has it: each stops at 40.
        most = 0
        while core.has_work:
            most = max(most, core.step().num_scheduled_requests)
            for i in range(12):
                sequence = core._live.get(str(i), {}).get(0)
                if sequence is not None and sequence.num_output_tokens >= 40:
                    core.abort(str(i))
        return core.snapshot().num_preemptions, most

    predicted, concurrency = run_with(40)
    hopeful, _ = run_with(1)
    assert predicted < hopeful
    # A full reservation (62 blocks for 248 tokens) would run one of the long ones at a time.
    assert concurrency > 3
