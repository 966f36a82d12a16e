"""Find the smallest change of the settings that makes a model fit."""

from collections.abc import Iterator
from dataclasses import replace

from engine.config import EngineConfig
from engine.errors import InvalidConfig
from engine.kv_cache import MemoryPlan
from engine.memory_prediction import predict_memory
from engine.memory_target import MemoryTarget
from engine.model_config import ModelConfig, parallel_sizes

_MOST_UTILIZATION = 0.95  # above it, fragments and libraries have too little
_LEAST_BATCHED_TOKENS = 512  # below it, prefill no longer fills a GPU
_LEAST_CACHE_TOKENS = 2048
"""A change that leaves less KV fits, and is no help."""


def smallest_change(
    config: EngineConfig, model: ModelConfig, target: MemoryTarget
) -> EngineConfig | None:
    """Return the settings with the one change that costs least; None: no single one helps.

    In this order: a larger share of the GPU, smaller steps, a KV cache as large as there is room
    for, sequences half as long at worst, more ranks, shorter sequences still.
    """
    for changed in _changes(config, model, target):
        plan = _plan(changed, model, target)
        wanted = min(changed.max_model_len or model.max_position, _LEAST_CACHE_TOKENS)
        if plan is not None and plan.num_cache_tokens >= wanted:
            return changed
    return None


def _changes(
    config: EngineConfig, model: ModelConfig, target: MemoryTarget
) -> Iterator[EngineConfig]:
    if target.device.type == "cuda" and config.memory_utilization < _MOST_UTILIZATION:
        yield replace(config, memory_utilization=_MOST_UTILIZATION)
    num_tokens = config.max_num_batched_tokens // 2
    while num_tokens >= _LEAST_BATCHED_TOKENS:
        yield replace(config, max_num_batched_tokens=num_tokens)
        num_tokens //= 2
    if config.kv_cache_bytes is not None:
        yield replace(config, kv_cache_bytes=None)
    longest = _longest(config, model, target)
    if longest and config.max_model_len and longest >= config.max_model_len // 2:
        yield replace(config, max_model_len=longest)
    for size in parallel_sizes(model):
        if size > config.tensor_parallel_size:
            yield replace(config, tensor_parallel_size=size)
    if longest:
        yield replace(config, max_model_len=longest)


def _longest(config: EngineConfig, model: ModelConfig, target: MemoryTarget) -> int | None:
    plan = _plan(replace(config, max_model_len=None), model, target)
    return None if plan is None else plan.max_model_len


def _plan(config: EngineConfig, model: ModelConfig, target: MemoryTarget) -> MemoryPlan | None:
    try:
        return predict_memory(config, model, target)
    except InvalidConfig:
        return None
