"""Paging against what came before it: same tokens, and how much KV memory each way wastes."""

from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.benchmarks.allocation import System, install
from tests.benchmarks.conversation import AS_TRACED, CHAT, Scale
from tests.benchmarks.waste import simulate
from tests.fakes import FakeExecutor


def waste(system: System, scale: Scale) -> float:
    return simulate(system, scale, max_requests=80).memory.waste


@pytest.mark.parametrize("scale", [CHAT, AS_TRACED], ids=["chat", "as traced"])
def test_paging_wastes_less_than_a_twenty_fifth_of_its_memory(scale: Scale) -> None:
    assert waste(System.PAGED, scale) < 0.04


def test_full_reservation_wastes_what_answers_leave_of_max_tokens() -> None:
    assert waste(System.RESERVED, CHAT) > 0.5
    assert waste(System.RESERVED, AS_TRACED) > 0.1


def test_contiguous_slots_waste_most_of_the_context() -> None:
    assert waste(System.CONTIGUOUS, CHAT) > 0.8


def make_core(system: System, executor: FakeExecutor) -> EngineCore:
    config = EngineConfig(
        model_path=Path("unused"),
        model_name="fake",
        block_size=4,
        max_num_batched_tokens=16,
        enable_prefix_caching=False,
    )
    core = EngineCore(
        config, executor, max_model_len=32, eos_token_ids=frozenset({3}), vocab_size=40
    )
    install(system, core, config, context=32)
    return core


@pytest.mark.parametrize("system", System)
def test_every_way_gives_the_same_tokens_and_takes_all_blocks_back(system: System) -> None:
    executor = FakeExecutor(num_blocks=34, block_size=4, vocab_size=40)
    core = make_core(system, executor)
    requests = [
        GenerateRequest(
            request_id=str(i),
            prompt_token_ids=[i % 40] * (1 + i % 13),
            params=SamplingParams(max_tokens=1 + 7 * i % 18, seed=i),
        )
        for i in range(40)
    ]
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        core.add(request)
    while core.has_work:
        for output in core.step().outputs:
            tokens[output.request_id] += output.token_ids
    for request in requests:
        limit = request.params.max_tokens
        assert limit is not None
        expected = executor.model.generate(request, 0, limit, frozenset({3}))
        assert tokens[request.request_id] == expected
    assert core.snapshot().num_free_blocks == 34


def test_nobody_joins_a_batch_under_way_and_its_slots_stay_taken() -> None:
    core = make_core(System.CONTIGUOUS, FakeExecutor(num_blocks=24, block_size=4, vocab_size=40))
    for i, num_tokens in enumerate([9, 2, 2, 5]):
        params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        core.add(GenerateRequest(request_id=str(i), prompt_token_ids=[i, 5], params=params))
    for num_scheduled in (3, 3, 1, 1, 1, 1, 1, 1):
        assert core.step().num_scheduled_requests == num_scheduled
        assert core.snapshot().num_free_blocks == 0
        assert core.snapshot().num_waiting == 1
    core.step()  # the longest ends
    core.step()
    assert core.snapshot().num_waiting == 0
    assert core.snapshot().num_free_blocks == 16


def test_reservation_admits_no_more_than_can_end() -> None:
    core = make_core(System.RESERVED, FakeExecutor(num_blocks=8, block_size=4, vocab_size=40))
    for i in range(3):
        params = SamplingParams(max_tokens=14, ignore_eos=True)
        core.add(GenerateRequest(request_id=str(i), prompt_token_ids=[i, 5], params=params))
    core.step()
    assert core.snapshot().num_running == 2
    assert core.snapshot().num_free_blocks == 0
