"""Quantized models: near the exact one, independent of the batch, refused where they cannot be."""

from pathlib import Path

import pytest
import torch

from engine.build import build_runner
from engine.errors import InvalidConfig
from engine.model_runner import ModelRunner
from engine.parallel import TensorParallel
from engine.step_input import StepInput
from kernels import ops
from tests.benchmarks.accuracy import PROSE, read_windows, windows_of
from tests.engine.generation import small_config
from tests.engine.paged_steps import PagedSequences
from tests.oracle import CHECKPOINTS, make_checkpoint

needs_kernels = pytest.mark.skipif(
    not ops.can_quantize(torch.float32, torch.device("cpu")), reason="no compiled kernels here"
)
TOKENS = [(7 * i) % 131 for i in range(61)]


def make_runner(folder: Path, quantization: str | None) -> ModelRunner:
    config = small_config(folder, quantization=quantization)
    return build_runner(config, TensorParallel.single())[0]


def logits(runner: ModelRunner, step: StepInput) -> torch.Tensor:
    rows = runner.forward(step)
    assert rows is not None
    return rows.clone()


def read(runner: ModelRunner, *chunks: int) -> torch.Tensor:
    sequences = PagedSequences(runner.num_blocks, 4)
    sequence = sequences.add(TOKENS)
    return torch.cat([logits(runner, sequences.step([(sequence, n)])) for n in chunks])


@needs_kernels
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_are_near_those_of_float32(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, name)

    exact, quantized = (read(make_runner(folder, kind), 61) for kind in (None, "w8a8"))

    assert not torch.equal(exact, quantized)
    # Random weights, which spread the error of each layer more than a trained model does.
    assert (exact - quantized).norm() < 0.25 * exact.norm()


@needs_kernels
def test_logits_do_not_depend_on_chunks_or_batch_mates(tmp_path: Path) -> None:
    runner = make_runner(make_checkpoint(tmp_path, "mistral"), "w8a8")
    alone = read(runner, 61)
    sequences = PagedSequences(runner.num_blocks, 4)
    first, second = sequences.add(TOKENS), sequences.add(TOKENS[::-1])

    parts = [logits(runner, sequences.step([(first, 1), (second, 33)]))[:1]]
    parts.append(logits(runner, sequences.step([(second, 1), (first, 30)]))[1:])
    parts.append(logits(runner, sequences.step([(first, 30)])))

    assert torch.equal(torch.cat(parts), alone)


@needs_kernels
def test_int8_takes_a_quarter_of_float32(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    plain, quantized = (
        build_runner(small_config(folder, quantization=kind), TensorParallel.single())[1]
        for kind in (None, "w8a8")
    )
    embedding = 131 * 48 * 4

    saved = (plain.memory.weight_bytes - embedding) / (quantized.memory.weight_bytes - embedding)
    # Rows are only 48 long here, so their scales and the norms, which stay, take a tenth of it.
    assert 3.5 < saved <= 4


@needs_kernels
@pytest.mark.slow
def test_the_real_model_stays_as_good(smollm2_path: Path) -> None:
    windows = windows_of(smollm2_path, PROSE)

    exact, quantized = (
        read_windows(smollm2_path, windows, dtype="float32", quantization=kind)
        for kind in (None, "w8a8")
    )

    assert quantized.perplexity < 1.05 * exact.perplexity
    assert quantized.agreement(exact) > 0.85


def test_an_unknown_quantization_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"int3(.|\n)*w8a8"):
        small_config(tmp_path, quantization="int3")


def test_quantization_needs_float32(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")

    config = small_config(folder, quantization="w8a8", dtype="bfloat16")
    with pytest.raises(InvalidConfig, match=r"bfloat16(.|\n)*--dtype float32"):
        build_runner(config, TensorParallel.single())


def test_quantization_needs_the_compiled_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    monkeypatch.setattr(ops, "can_quantize", lambda *_: False)

    with pytest.raises(InvalidConfig, match="compiler"):
        build_runner(small_config(folder, quantization="w8a8"), TensorParallel.single())
