"""How large the KV cache gets, and when it is refused."""

from pathlib import Path

import pytest
import torch

from engine import kv_cache
from engine.config import EngineConfig
from engine.errors import InvalidConfig
from engine.kv_cache import (
    MemoryPlan,
    allocate_kv_caches,
    attention_geometry,
    cache_budget,
    choose_max_model_len,
    num_blocks_in,
)
from engine.model_config import ModelConfig
from engine.rope_config import RopeConfig

CPU = torch.device("cpu")
GIB = 1 << 30


def config(**changes: object) -> EngineConfig:
    settings = {"model_path": Path("unused"), "model_name": "test", **changes}
    return EngineConfig(**settings)  # type: ignore[arg-type]


def model(**changes: object) -> ModelConfig:
    settings: dict[str, object] = {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 100,
        "hidden_size": 48,
        "num_layers": 3,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 72,
        "rms_norm_eps": 1e-6,
        "max_position": 500,
        "rope": RopeConfig(),
        "sliding_windows": (None,) * 3,
    }
    return ModelConfig(**{**settings, **changes})  # type: ignore[arg-type]


def test_cache_tensors_take_the_bytes_that_were_planned() -> None:
    geometry = attention_geometry(model(), 2, torch.bfloat16, block_size=16, num_blocks=5)

    caches = allocate_kv_caches(geometry, 3, CPU)

    assert [tuple(cache.shape) for cache in caches] == [(2, 5, 1, 16, 8)] * 3
    assert sum(cache.nbytes for cache in caches) == geometry.block_bytes * 5 * 3


def test_ranks_beyond_the_kv_heads_repeat_them() -> None:
    shapes = [
        (geometry.num_kv_heads, geometry.group_size)
        for size in (1, 2, 6)
        for geometry in [attention_geometry(model(), size, torch.float32, 16, 1)]
    ]

    assert shapes == [(2, 3), (1, 3), (1, 1)]


def test_a_given_cache_size_is_shared_by_the_ranks() -> None:
    assert cache_budget(config(kv_cache_bytes=1000), 4, CPU, 0) == 250


def test_the_cache_takes_half_of_the_share_of_free_memory_up_to_4_gib(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for free, expected in ((4 * GIB, 1.8 * GIB), (100 * GIB, 4 * GIB)):
        monkeypatch.setattr(kv_cache, "available_host_bytes", lambda free=free: free)
        assert cache_budget(config(), 1, CPU, 0) == int(expected)
        assert cache_budget(config(), 2, CPU, 0) == int(expected) // 2


@pytest.mark.parametrize("budget", [-5, 0, 99])
def test_no_room_for_a_block_is_refused(budget: int) -> None:
    assert num_blocks_in(205, 100) == 2
    with pytest.raises(InvalidConfig, match="KV cache has room"):
        num_blocks_in(budget, 100)


def test_the_context_is_what_model_and_cache_both_hold() -> None:
    assert choose_max_model_len(config(), model(), 1000) == 500
    assert choose_max_model_len(config(), model(), 10) == 160
    assert choose_max_model_len(config(max_model_len=160), model(), 10) == 160


def test_a_context_longer_than_model_or_cache_is_refused_with_what_works() -> None:
    with pytest.raises(InvalidConfig, match="at most 500"):
        choose_max_model_len(config(max_model_len=501), model(), 1000)
    with pytest.raises(InvalidConfig, match="at most 160"):
        choose_max_model_len(config(max_model_len=161), model(), 10)


def test_the_plan_tells_how_many_longest_sequences_fit() -> None:
    plan = MemoryPlan(
        weight_bytes=0,
        activation_bytes=0,
        kv_cache_bytes=0,
        block_bytes=1,
        num_blocks=30,
        block_size=16,
        max_model_len=320,
    )

    assert plan.num_cache_tokens == 480
    assert plan.max_concurrency == 1.5
