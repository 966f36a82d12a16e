"""Memory stays flat however many requests pass through an engine."""

import gc
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import psutil
import pytest

from engine.build import build_core
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.parallel import TensorParallel
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.engine.generation import small_config
from tests.fakes import FakeClock, FakeExecutor, expect_short_outputs
from tests.oracle import make_checkpoint

NUM_REQUESTS = 20_000
NUM_WARM_UP = 6_000
NUM_BETWEEN_SAMPLES = 500
# A leak of 1 KiB a request is eight times as much. What is left over is the allocator's.
MAX_BYTES_PER_REQUEST = 128
VOCAB = 130


def request(number: int, rng: Random) -> GenerateRequest:
    """All kinds: choices, deadlines that pass and that never come, classes, repeated prompts."""
    start = rng.randrange(VOCAB)
    return GenerateRequest(
        request_id=f"request-{number}",
        prompt_token_ids=[(start + i) % VOCAB for i in range(rng.randint(1, 20))],
        params=SamplingParams(
            n=rng.choice([1, 1, 1, 2]),
            max_tokens=rng.randint(1, 6),
            seed=number,
            temperature=rng.choice([0.0, 1.0]),
            logprobs=rng.choice([None, 2]),
        ),
        cache_salt=rng.choice(["", f"tenant-{number}"]),
        priority=rng.choice([0, 0, 1]),
        deadline_s=rng.choice([None, None, 1e-9, 1e9]),
    )


def bytes_per_request(core: EngineCore, tick: Callable[[], None]) -> float:
    """Pass requests through the engine; return the slope of resident memory over their number."""
    process, rng = psutil.Process(), Random(1)
    numbers, resident = [], []
    for number in range(NUM_REQUESTS):
        core.add(request(number, rng))
        if number % 17 == 0:
            core.abort(f"request-{rng.randint(max(0, number - 8), number)}")
        while core.snapshot().num_waiting > 4:
            core.step()
            tick()
        if number >= NUM_WARM_UP and number % NUM_BETWEEN_SAMPLES == 0:
            gc.collect()
            numbers.append(number)
            resident.append(process.memory_info().rss)
    while core.has_work:
        core.step()
    snapshot = core.snapshot()
    assert snapshot.num_usable_blocks == snapshot.num_blocks
    assert len(numbers) > 20
    slope, _ = np.polyfit(numbers, resident, 1)
    return float(slope)


def is_flat(core: EngineCore, tick: Callable[[], None]) -> bool:
    """Tell whether memory stays as it is.

    What earlier tests left in this process may move it too, for once; a leak grows every time.
    """
    return any(bytes_per_request(core, tick) < MAX_BYTES_PER_REQUEST for _ in range(3))


@pytest.mark.slow
def test_memory_is_flat_over_twenty_thousand_requests() -> None:
    executor = FakeExecutor(24, 4, vocab_size=VOCAB, num_host_blocks=40)
    clock = FakeClock()
    config = EngineConfig(
        model_path=Path("unused"),
        model_name="fake",
        block_size=4,
        max_num_seqs=16,
        max_num_batched_tokens=128,
    )
    core = EngineCore(
        config,
        executor,
        max_model_len=64,
        eos_token_ids=frozenset({3}),
        vocab_size=VOCAB,
        clock=clock,
    )
    expect_short_outputs(core._scheduler._lengths)
    assert is_flat(core, lambda: clock.advance(0.001))
    assert core.snapshot().num_preemptions > 100
    assert core.snapshot().num_used_host_blocks == 40


@pytest.mark.slow
def test_memory_is_flat_with_a_real_model(tmp_path: Path) -> None:
    widths = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
    folder = make_checkpoint(tmp_path, "llama", num_hidden_layers=1, **widths)
    config = small_config(
        folder, kv_cache_bytes=1 << 19, host_kv_bytes=1 << 19, max_num_seqs=16, max_model_len=64
    )
    core = build_core(config, TensorParallel.single())
    assert is_flat(core, lambda: None)
    core.shutdown()
