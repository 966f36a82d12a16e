"""Where the KV cache may be kept in float8, and what it takes then."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.build import build_runner
from engine.device import check_kv_cache_dtype
from engine.errors import InvalidConfig
from engine.kv_cache import allocate_kv_caches, attention_geometry
from engine.memory_prediction import predict_memory
from engine.memory_target import find_target
from engine.model_config import ModelConfig
from engine.parallel import TensorParallel
from kernels import gpu_library
from tests.engine.generation import small_config
from tests.engine.test_memory_prediction import LLAMA, gpu, gpu_config
from tests.oracle import make_checkpoint

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["fp8", "fp8_e4m3"])
def test_its_blocks_take_half_of_those_in_16_bits(name: str) -> None:
    model = ModelConfig.from_json(LLAMA)

    plain = predict_memory(gpu_config(), model, gpu())
    halved = predict_memory(gpu_config(kv_cache_dtype=name), model, gpu())

    assert 2 * halved.block_bytes == plain.block_bytes
    assert halved.num_blocks in (2 * plain.num_blocks, 2 * plain.num_blocks + 1)
    assert halved.weight_bytes == plain.weight_bytes
    assert halved.activation_bytes == plain.activation_bytes


def test_its_tensors_take_the_bytes_that_were_planned() -> None:
    model = ModelConfig.from_json({**LLAMA, "num_hidden_layers": 2})
    geometry = attention_geometry(model, 2, torch.bfloat16, 16, 5, is_float8=True)

    caches = allocate_kv_caches(geometry, 2, CPU)

    assert [cache.dtype for cache in caches] == [torch.float8_e4m3fn] * 2
    assert sum(cache.nbytes for cache in caches) == 2 * 5 * geometry.block_bytes
    assert geometry.dtype == torch.bfloat16


def test_the_cpu_has_none(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    config = small_config(folder, kv_cache_dtype="fp8")

    with pytest.raises(InvalidConfig, match=r"device is cpu(.|\n)*--kv-cache-dtype auto"):
        build_runner(config, TensorParallel.single())
    with pytest.raises(InvalidConfig, match="device is cpu"):
        find_target(config, ModelConfig.from_folder(folder))


@pytest.mark.parametrize(
    ("capability", "operations", "cause"),
    [
        ((8, 9), object(), None),
        ((9, 0), object(), None),
        ((8, 0), object(), "the GPU has 8.0"),
        ((9, 0), None, "Triton is missing"),
    ],
)
def test_a_gpu_has_it_if_it_knows_float8(
    capability: tuple[int, int],
    operations: object,
    cause: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _device: capability)
    monkeypatch.setattr(gpu_library, "gpu_operations", lambda: operations)
    config = gpu_config(kv_cache_dtype="fp8")
    if cause is None:
        check_kv_cache_dtype(config, CUDA)
    else:
        with pytest.raises(InvalidConfig, match=cause):
            check_kv_cache_dtype(config, CUDA)
        # It is no matter of this machine, and none without float8.
        check_kv_cache_dtype(config, CUDA, is_elsewhere=True)
        check_kv_cache_dtype(replace(config, kv_cache_dtype="auto"), CUDA)


def test_another_format_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"kv_cache_dtype is 'fp8_e5m2'(.|\n)*auto or fp8"):
        gpu_config(kv_cache_dtype="fp8_e5m2")
