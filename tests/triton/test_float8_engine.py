"""The engine with its KV cache in float8, as it runs on a GPU."""

from pathlib import Path

import pytest
import torch

from engine.build import build_core
from engine.core import EngineCore
from engine.parallel import TensorParallel
from engine.sampling_params import SamplingParams
from kernels import gpu_library, ops
from kernels.layout import AttentionGeometry
from kernels.reference import ReferencePlanner
from tests.oracle import ReferenceModel, make_checkpoint
from tests.triton.gpu_engine import build, small_config
from tests.triton.test_gpu_engine import PROMPTS, run

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
FAR_BELOW_BEST = 0.5
"""In logits, whose standard deviation over the vocabulary is above 2 in these models."""


def caches_of(core: EngineCore) -> list[torch.Tensor]:
    caches: list[torch.Tensor] = core._pipeline._executor._runner._kv_caches  # type: ignore[attr-defined]
    return caches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "enforce_eager"), [("llama", False), ("qwen3", True), ("mistral-windowed", False)]
)
def test_greedy_tokens_are_near_those_of_the_full_cache(
    name: str, enforce_eager: bool, device: torch.device, tmp_path: Path
) -> None:
    """Nearly all are what the model would take without rounding, and none is far below that."""
    folder = make_checkpoint(tmp_path, name, num_hidden_layers=1)
    config = small_config(folder, device, kv_cache_dtype="fp8", enforce_eager=enforce_eager)
    core = build(config)
    exact = ReferenceModel(folder)
    gaps = []
    # The second time prompts are found in the cache.
    for _ in range(2):
        for prompt, (output,) in zip(PROMPTS, run(core, PROMPTS, GREEDY), strict=True):
            assert len(output) == GREEDY.max_tokens
            logits = exact.logits(prompt + output)[len(prompt) - 1 : -1]
            chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
            gaps += (logits.amax(1) - chosen).tolist()
    assert max(gaps) < FAR_BELOW_BEST
    assert sum(gap > 0 for gap in gaps) <= len(gaps) // 8
    assert all(cache.dtype == torch.float8_e4m3fn for cache in caches_of(core))


@pytest.mark.slow
def test_tokens_are_those_of_the_reference_with_the_same_cache(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reference_planner(
        geometry: AttentionGeometry, _windows: object, device: torch.device
    ) -> ReferencePlanner:
        return ReferencePlanner(geometry, device)

    folder = make_checkpoint(tmp_path, "qwen3", num_hidden_layers=1)
    config = small_config(folder, device, kv_cache_dtype="fp8")
    outputs = run(build(config), PROMPTS, GREEDY)
    monkeypatch.setattr(ops, "attention_planner", reference_planner)
    monkeypatch.setattr(gpu_library, "can_cache_float8", lambda _device: True)
    core = build_core(config, TensorParallel.single())
    assert run(core, PROMPTS, GREEDY) == outputs
    exact = build_core(small_config(folder, device), TensorParallel.single())
    assert run(exact, PROMPTS, GREEDY) != outputs, "rounding makes no difference here"


@pytest.mark.slow
def test_the_same_memory_holds_twice_the_blocks_of_16_bits(
    device: torch.device, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, "llama", num_hidden_layers=1)
    cores = [
        build(small_config(folder, device, dtype="bfloat16", kv_cache_dtype=kind))
        for kind in ("auto", "fp8")
    ]
    plain, halved = (core._pool.num_blocks for core in cores)
    assert halved == 2 * plain
    sizes = [sum(cache.nbytes for cache in caches_of(core)) for core in cores]
    assert sizes == [1 << 20, 1 << 20]
