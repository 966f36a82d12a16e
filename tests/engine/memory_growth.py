"""Passes requests through an engine and prints by how many bytes each made memory grow.

A process of its own, since what other tests have left in theirs moves memory too:
`python -m tests.engine.memory_growth [FOLDER]`, with the model in FOLDER or a simulated one.
"""

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import psutil

from engine.build import build_core
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.parallel import TensorParallel
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.engine.generation import small_config
from tests.fakes import FakeClock, FakeExecutor, expect_short_outputs

NUM_REQUESTS = 20_000
NUM_WARM_UP = 6_000
NUM_BETWEEN_SAMPLES = 500
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


def simulated() -> float:
    """Return it for a simulated model."""
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
    slope = bytes_per_request(core, lambda: clock.advance(0.001))
    assert core.snapshot().num_preemptions > 100
    assert core.snapshot().num_used_host_blocks == 40
    return slope


def real(folder: Path) -> float:
    """Return it for a checkpoint."""
    config = small_config(
        folder, kv_cache_bytes=1 << 19, host_kv_bytes=1 << 19, max_num_seqs=16, max_model_len=64
    )
    core = build_core(config, TensorParallel.single())
    slope = bytes_per_request(core, lambda: None)
    core.shutdown()
    return slope


if __name__ == "__main__":
    print(real(Path(sys.argv[1])) if len(sys.argv) > 1 else simulated())
