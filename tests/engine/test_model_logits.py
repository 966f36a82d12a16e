"""The decoder's logits against transformers, in float32, for every architecture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.build import build_runner
from engine.config import EngineConfig
from engine.model_runner import ModelRunner
from engine.parallel import TensorParallel
from engine.step_input import StepInput
from tests.engine.paged_steps import PagedSequences
from tests.oracle import CHECKPOINTS, ReferenceModel, make_checkpoint

LENGTH = 61
BLOCK_SIZE = 4


def make_runner(folder: Path, **changes: object) -> ModelRunner:
    settings: dict[str, object] = {
        "model_path": folder,
        "model_name": "test",
        "device": "cpu",
        "dtype": "float32",
        "block_size": BLOCK_SIZE,
        "kv_cache_bytes": 4 << 20,
        "num_threads": 1,
    }
    config = EngineConfig(**{**settings, **changes})  # type: ignore[arg-type]
    return build_runner(config, TensorParallel.single())[0]


def prompt(seed: int, length: int = LENGTH, vocab_size: int = 131) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()  # type: ignore[no-any-return]


def forward(runner: ModelRunner, step: StepInput) -> Tensor:
    logits = runner.forward(step)
    assert logits is not None
    return logits.clone()


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_of_a_whole_prompt_equal_transformers(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, name)
    runner = make_runner(folder)
    sequences = PagedSequences(runner.num_blocks, BLOCK_SIZE)

    logits = forward(runner, sequences.step([(sequences.add(prompt(0)), LENGTH)]))

    assert_near(logits, ReferenceModel(folder).logits(prompt(0)))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_of_mixed_chunks_and_decodes_equal_transformers(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, name)
    runner = make_runner(folder)
    reference = ReferenceModel(folder)
    sequences = PagedSequences(runner.num_blocks, BLOCK_SIZE)
    first, second, third = (sequences.add(prompt(seed)) for seed in range(3))
    parts: list[list[Tensor]] = [[], [], []]
    # Rows: chunk sizes of the three sequences in one step; single tokens come first.
    for counts in ((13, 0, 0), (1, 20, 0), (1, 7, 40), (1, 1, 2), (45, 33, 19)):
        chunks = [(s, c) for s, c in zip((first, second, third), counts, strict=True) if c]
        logits = torch.split(forward(runner, sequences.step(chunks)), [c for _, c in chunks])
        for part, rows in zip(
            [p for p, c in zip(parts, counts, strict=True) if c], logits, strict=True
        ):
            part.append(rows)

    for seed in range(3):
        assert_near(torch.cat(parts[seed]), reference.logits(prompt(seed)))


def test_only_wanted_rows_get_logits_in_the_order_asked_for(tmp_path: Path) -> None:
    runner = make_runner(make_checkpoint(tmp_path, "llama"))
    sequences = PagedSequences(runner.num_blocks, BLOCK_SIZE)
    step = sequences.step([(sequences.add(prompt(0)), LENGTH)])
    everything = forward(runner, step)

    rows = np.array([40, 3, 60], dtype=np.int32)
    some = StepInput(step.token_ids, step.positions, rows, step.layout)
    assert_near(forward(runner, some), everything[[40, 3, 60]])

    none = StepInput(step.token_ids, step.positions, rows[:0], step.layout)
    assert runner.forward(none) is None


def test_a_step_without_logits_still_stores_its_keys_and_values(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    runner = make_runner(folder)
    sequences = PagedSequences(runner.num_blocks, BLOCK_SIZE)
    sequence = sequences.add(prompt(0))
    step = sequences.step([(sequence, LENGTH - 1)])
    runner.forward(StepInput(step.token_ids, step.positions, step.logits_rows[:0], step.layout))

    last = forward(runner, sequences.step([(sequence, 1)]))

    assert_near(last, ReferenceModel(folder).logits(prompt(0))[-1:])


@pytest.mark.slow
def test_logits_of_the_real_model_equal_transformers(smollm2_path: Path) -> None:
    runner = make_runner(smollm2_path, block_size=16, kv_cache_bytes=64 << 20)
    sequences = PagedSequences(runner.num_blocks, 16)
    token_ids = prompt(0, 150, 49_000)
    sequence = sequences.add(token_ids)
    parts = [forward(runner, sequences.step([(sequence, n)])) for n in (100, 1, 1, 48)]

    torch.testing.assert_close(
        torch.cat(parts), ReferenceModel(smollm2_path).logits(token_ids), atol=5e-3, rtol=1e-3
    )
