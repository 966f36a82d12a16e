"""The predicted memory plan against the one a start comes to."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.build import build_engine
from engine.config import EngineConfig
from engine.device import choose_dtype, choose_packing
from engine.errors import InvalidConfig
from engine.fitting_change import smallest_change
from engine.kv_cache import MemoryPlan
from engine.memory_prediction import predict_memory, sampler_bytes, step_bytes
from engine.memory_target import MemoryTarget, find_target
from engine.model_config import ModelConfig
from engine.parallel import TensorParallel
from kernels.weights import Packing
from tests.engine.generation import small_config
from tests.engine.quantized_files import FORMS, quantize_folder
from tests.oracle import make_checkpoint

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 1 << 30
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}
"""LLaMA-2-7B: 6,738,415,616 parameters, of which 266,240 in norms."""
LARGE = {
    **LLAMA,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
"""LLaMA-2-70B: 128.5 GiB of weights."""


def assert_predicts(config: EngineConfig) -> MemoryPlan:
    """Assert that the plan and that of a start agree; return the start's."""
    model = ModelConfig.from_folder(config.model_path)
    predicted = predict_memory(config, model, find_target(config, model))
    built = build_engine(config, TensorParallel.single())
    built.core.shutdown()
    memory = built.report.memory
    assert predicted.weight_bytes == pytest.approx(memory.weight_bytes, rel=0.03)
    assert predicted.num_blocks == pytest.approx(memory.num_blocks, rel=0.03)
    assert predicted.max_model_len == pytest.approx(memory.max_model_len, rel=0.03)
    fields = ("activation_bytes", "block_bytes", "num_host_blocks")
    assert [getattr(predicted, f) for f in fields] == [getattr(memory, f) for f in fields]
    return memory


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3"])
@pytest.mark.parametrize(
    "changes", [{}, {"dtype": "auto"}, {"host_kv_bytes": 1 << 20, "max_model_len": 100}], ids=str
)
def test_a_start_with_a_given_cache_comes_to_the_predicted_plan(
    name: str, changes: dict[str, object], tmp_path: Path
) -> None:
    assert_predicts(small_config(make_checkpoint(tmp_path, name), **changes))


def test_a_start_with_a_quantised_checkpoint_comes_to_the_predicted_plan(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain", "llama")
    assert_predicts(small_config(quantize_folder(plain, tmp_path / "it", FORMS["awq"])))


FixMemory = Callable[[int], None]


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch) -> FixMemory:
    """Fix what is free on the machine, from before the weights are loaded on."""

    def fix(num_bytes: int) -> None:
        for module in ("engine.kv_cache", "engine.build", "engine.memory_target"):
            monkeypatch.setattr(f"{module}.available_host_bytes", lambda: num_bytes)

    return fix


def test_a_start_with_the_default_share_comes_to_the_predicted_plan(
    tmp_path: Path, free_memory: FixMemory
) -> None:
    free_memory(64 << 20)

    memory = assert_predicts(small_config(make_checkpoint(tmp_path, "llama"), kv_cache_bytes=None))

    assert memory.kv_cache_bytes == pytest.approx(0.45 * (64 << 20), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kv_cache_bytes", [64 << 20, None])
def test_the_real_model_comes_to_the_predicted_plan(
    kv_cache_bytes: int | None, smollm2_path: Path, free_memory: FixMemory
) -> None:
    # Far more than the weights, as the fixed figure does not fall when they are loaded.
    free_memory(16 * GIB)
    config = small_config(
        smollm2_path, block_size=16, kv_cache_bytes=kv_cache_bytes, max_num_batched_tokens=512
    )
    assert_predicts(config)


def gpu(total_bytes: int = 80 * GIB) -> MemoryTarget:
    return MemoryTarget(
        device=CUDA,
        dtype=torch.float16,
        packing=Packing.NONE,
        keeps_quantized=True,
        available_bytes=total_bytes - GIB,
        total_bytes=total_bytes,
        host_bytes=None,
    )


def gpu_config(**changes: object) -> EngineConfig:
    settings = {"device": "cuda", "block_size": 16, "kv_cache_bytes": None, "dtype": "auto"}
    return small_config(Path("unused"), **{**settings, **changes})


def test_a_gpu_is_filled_up_to_its_share() -> None:
    model = ModelConfig.from_json(LLAMA)

    plan = predict_memory(gpu_config(), model, gpu())

    assert plan.weight_bytes == pytest.approx(2 * 6_738_415_616, rel=1e-3)
    assert plan.block_bytes == 16 * 32 * 2 * 4096 * 2
    used = plan.weight_bytes + plan.activation_bytes + plan.kv_cache_bytes
    assert used == pytest.approx((0.9 * 80 - 1) * GIB, abs=plan.block_bytes)
    assert plan.max_model_len == 4096


def test_ranks_share_weights_and_cache() -> None:
    model = ModelConfig.from_json(LARGE)

    plan = predict_memory(gpu_config(tensor_parallel_size=8), model, gpu())

    assert plan.weight_bytes == pytest.approx(2 * 68_976_648_192 / 8, rel=1e-3)
    assert plan.block_bytes == 16 * 80 * 2 * 128 * 2


def test_a_step_counts_what_lives_at_once_in_a_layer() -> None:
    model = ModelConfig.from_json({**LLAMA, "num_key_value_heads": 8})
    config = gpu_config(max_num_batched_tokens=1000, max_num_seqs=1)

    def num_bytes(packing: Packing, size: int = 1) -> int:
        sized = replace(config, tensor_parallel_size=size)
        return step_bytes(sized, model, torch.float16, packing, CPU)

    rotation = 1000 * 64 * 8
    assert num_bytes(Packing.NONE) == 1000 * 2 * (3 * 4096 + 3 * 11008) + rotation
    # Where the activation is part of the product, gate and up are never there.
    assert num_bytes(Packing.PANELS) == 1000 * 2 * (4 * 4096 + 11008) + rotation
    assert num_bytes(Packing.NONE, 4) == 1000 * 2 * (3 * 4096 + 3 * 11008 // 4) + rotation


def test_a_step_counts_logits_and_the_sampler_where_those_are_more() -> None:
    model = ModelConfig.from_json({**LLAMA, "vocab_size": 150_001})
    config = gpu_config(max_num_batched_tokens=256, max_num_seqs=500)

    alone = step_bytes(config, model, torch.float16, Packing.NONE, CPU)
    pair = step_bytes(
        replace(config, tensor_parallel_size=2), model, torch.float16, Packing.NONE, CPU
    )

    assert sampler_bytes(config, model, CPU) == 2 * 256 * 150_001 * 4
    assert alone == 256 * 150_001 * 2 + sampler_bytes(config, model, CPU)
    # A rank's own part of 75,001; on the first rank both parts and the whole.
    assert pair == 256 * 75_001 * 2 * (1 + 4) + sampler_bytes(config, model, CPU)


def test_cuda_needs_the_workspace_of_its_products() -> None:
    model = ModelConfig.from_json(LLAMA)
    on_cpu, on_cuda = (
        step_bytes(gpu_config(), model, torch.float16, Packing.NONE, device)
        for device in (CPU, CUDA)
    )
    assert on_cuda - on_cpu == 32 << 20


def test_what_does_not_fit_is_refused_with_what_it_needs() -> None:
    with pytest.raises(InvalidConfig, match=r"needs 128\.\d+ GiB for weights.*71\.0") as error:
        predict_memory(gpu_config(), ModelConfig.from_json(LARGE), gpu())
    assert "more ranks" in error.value.fix


@pytest.mark.parametrize(
    ("content", "gib", "changes", "expected"),
    [
        (LARGE, 80, {}, {"tensor_parallel_size": 2}),
        (LARGE, 40, {}, {"tensor_parallel_size": 4}),
        (LLAMA, 17, {"max_model_len": 4096}, {"memory_utilization": 0.95}),
        (LLAMA, 80, {"kv_cache_bytes": 70 * GIB}, {"kv_cache_bytes": None}),
        (LLAMA, 80, {"max_model_len": 5000}, {"max_model_len": 4096}),
        (LLAMA, 4, {}, {"tensor_parallel_size": 8}),
        (LLAMA, 1, {}, None),
    ],
)
def test_the_smallest_change_that_fits_is_found(
    content: dict[str, object],
    gib: int,
    changes: dict[str, object],
    expected: dict[str, Any] | None,
) -> None:
    model, config = ModelConfig.from_json(content), gpu_config(**changes)
    with pytest.raises(InvalidConfig):
        predict_memory(config, model, gpu(gib * GIB))

    changed = smallest_change(config, model, gpu(gib * GIB))

    assert changed == (None if expected is None else replace(config, **expected))


def test_more_ranks_are_no_help_where_they_share_one_memory(tmp_path: Path) -> None:
    model = ModelConfig.from_folder(make_checkpoint(tmp_path, "llama"))
    config = small_config(tmp_path)
    target = replace(find_target(config, model), available_bytes=100_000)

    with pytest.raises(InvalidConfig, match="A rank needs"):
        predict_memory(config, model, target)
    assert smallest_change(config, model, target) is None


def test_a_gpu_that_is_not_here_has_its_models_dtype(tmp_path: Path) -> None:
    model = ModelConfig.from_json(LLAMA)

    target = find_target(gpu_config(device="auto"), model, 24 * GIB)

    assert (target.device, target.dtype, target.packing) == (CUDA, torch.float16, Packing.NONE)
    assert target.total_bytes == 24 * GIB
    assert 23 * GIB < target.free_bytes(1) < 24 * GIB
    assert target.free_bytes(2) < target.free_bytes(1)
    with pytest.raises(InvalidConfig, match="device is cpu"):
        find_target(gpu_config(device="cpu"), model, 24 * GIB)


def test_this_machine_has_what_the_start_takes(tmp_path: Path, free_memory: FixMemory) -> None:
    free_memory(5 * GIB)
    model = ModelConfig.from_folder(make_checkpoint(tmp_path, "llama"))
    config = small_config(tmp_path)

    target = find_target(config, model)

    assert target.dtype == choose_dtype(config, model, CPU)
    assert target.packing == choose_packing(config, model, CPU, target.dtype)
    assert target.free_bytes(1) == target.free_bytes(2) == target.host_bytes == 5 * GIB
