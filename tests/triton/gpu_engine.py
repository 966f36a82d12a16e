"""An engine that runs as on a GPU: on a CUDA device, or its parts on CPU, interpreted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.build import BuildReport, build_core, build_runner
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.follower import follow, run_follower
from engine.gpu_sampler import GpuSampler
from engine.graph_sizes import GraphSizes
from engine.input_batch import InputBatch
from engine.model_executor import ModelExecutor
from engine.model_runner import ModelRunner
from engine.parallel import TensorParallel
from kernels import gpu_library, ops
from kernels.gpu.attention_planner import GpuAttentionPlanner
from kernels.layout import AttentionGeometry


def build(config: EngineConfig, group: TensorParallel | None = None) -> EngineCore:
    """Build it for the device that the config names.

    Decodes run by graphs unless told not to, all but the largest recorded while requests run.
    """
    group = group or TensorParallel.single()
    with _as_on_a_gpu(config):
        if config.device == "cuda":
            return build_core(config, group)
        runner, built = _build_runner(config, group)
    input_batch = InputBatch(
        max_num_seqs=config.max_num_seqs,
        max_model_len=built.memory.max_model_len,
        block_size=config.block_size,
    )
    sampler = GpuSampler(built.model.vocab_size, torch.device("cpu"))
    return EngineCore(
        config,
        ModelExecutor(runner, input_batch, sampler, group),
        max_model_len=built.memory.max_model_len,
        eos_token_ids=built.model.eos_token_ids,
        vocab_size=built.model.vocab_size,
    )


def run_gpu_follower(config: EngineConfig, group: TensorParallel) -> None:
    """Do what `engine.follower.run_follower` does, on the same device."""
    with _as_on_a_gpu(config):
        if config.device == "cuda":
            run_follower(config, group)
        else:
            follow(_build_runner(config, group)[0], group)


def graph_sizes(core: EngineCore) -> list[int]:
    """Rows of the graphs that were recorded, in the order in which they were."""
    return list(core._pipeline._executor._runner._graphs._graphs)  # type: ignore[attr-defined]


@contextmanager
def _as_on_a_gpu(config: EngineConfig) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphSizes, "up_to", _sizes)
        if config.device != "cuda":
            patch.setattr(ops, "attention_planner", _gpu_planner)
            patch.setattr(gpu_library, "can_cache_float8", lambda _device: True)
        yield


def _build_runner(config: EngineConfig, group: TensorParallel) -> tuple[ModelRunner, BuildReport]:
    runner, built = build_runner(config, group)
    if not config.enforce_eager:
        max_blocks = -(-built.memory.max_model_len // config.block_size)
        runner.record_graphs(_record, GraphSizes.up_to(config.max_num_seqs), max_blocks)
    return runner, built


def small_config(folder: Path, device: torch.device, **changes: object) -> EngineConfig:
    """Settings for a small checkpoint in float32."""
    settings: dict[str, object] = {
        "model_path": folder,
        "model_name": "test",
        "device": device.type,
        "dtype": "float32",
        "block_size": 4,
        "kv_cache_bytes": 1 << 20,
        "max_model_len": 64,
        "max_num_seqs": 4,
        "num_threads": 1,
    }
    return EngineConfig(**{**settings, **changes})  # type: ignore[arg-type]


def _gpu_planner(
    geometry: AttentionGeometry, windows: frozenset[int | None], device: torch.device
) -> GpuAttentionPlanner:
    return GpuAttentionPlanner(geometry, windows, device)


def _sizes(max_num_seqs: int) -> GraphSizes:
    sizes = range(1, max_num_seqs + 1)
    return GraphSizes(sizes, [max_num_seqs], num_misses=1, num_steps_apart=2)


def _record(run: Callable[[], Tensor | None]) -> Callable[[], Tensor | None]:
    """Run it, as a recording does, and run it again from the same memory each time."""
    run()
    return run
