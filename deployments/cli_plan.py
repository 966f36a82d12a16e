"""`pageray plan`: shows what a start would spend memory on, or what keeps it from fitting."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from deployments.args import ModelArgs
from deployments.cli_pull import progress_bars
from engine.config import EngineConfig
from engine.errors import InvalidConfig
from engine.fitting_change import smallest_change
from engine.kv_cache import GIB, MemoryPlan
from engine.memory_prediction import predict_memory
from engine.memory_target import MemoryTarget, find_target
from engine.model_config import ModelConfig
from engine.model_store import resolve_config

OPTIONS = {
    "memory_utilization": "--gpu-memory-utilization",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "max_model_len": "--max-model-len",
    "tensor_parallel_size": "--tensor-parallel-size",
    "kv_cache_bytes": "--kv-cache-memory",
}
"""What `smallest_change` may change, as the command line calls it."""
PLAIN: Any = {"highlight": False, "markup": False, "soft_wrap": True}


def plan(args: ModelArgs, cache_dir: Path, gpu_bytes: int | None, *, as_json: bool) -> None:
    """Print the plan of one model.

    Args:
        args: what `serve` would start.
        cache_dir: where fetched models are.
        gpu_bytes: memory of each GPU, which need not be here; None: plan for this machine.
        as_json: print an object instead of a table.

    Raises InvalidConfig when the model does not fit, with the smallest change that makes it fit;
    ModelNotFound and InvalidModel.
    """
    with progress_bars(Console(stderr=True)) as report:
        content = resolve_config(args.model, cache_dir=cache_dir, report=report)
    model = ModelConfig.from_json(content)
    config = args.engine_config(device=_device_kind(args, gpu_bytes))
    target = find_target(config, model, gpu_bytes)
    try:
        memory = predict_memory(config, model, target)
    except InvalidConfig as error:
        changed = smallest_change(config, model, target)
        if changed is None:
            raise
        raise InvalidConfig(error.cause, f"It fits with {_difference(config, changed)}.") from error
    if as_json:
        typer.echo(json.dumps(_as_json(args, config, model, target, memory), indent=2))
        return
    console = Console()
    console.print(_title(args, config, model, target), **PLAIN)
    console.print(_table(memory, config, target))
    console.print(memory.summary, **PLAIN)


def _device_kind(args: ModelArgs, gpu_bytes: int | None) -> str:
    if args.device != "auto":
        if args.device == "cuda" and gpu_bytes is None and not torch.cuda.is_available():
            raise InvalidConfig(
                "The plan is for cuda, and torch sees no CUDA GPU here.",
                "Say how much memory it has: --device-memory 80GiB.",
            )
        return args.device
    return "cuda" if gpu_bytes is not None or torch.cuda.is_available() else "cpu"


def _difference(config: EngineConfig, changed: EngineConfig) -> str:
    [name] = [name for name in OPTIONS if getattr(config, name) != getattr(changed, name)]
    value = getattr(changed, name)
    return f"{OPTIONS[name]} {value}" if value is not None else f"{OPTIONS[name]} left out"


def _title(args: ModelArgs, config: EngineConfig, model: ModelConfig, target: MemoryTarget) -> str:
    size = config.tensor_parallel_size
    ranks = "1 rank" if size == 1 else f"each of {size} ranks"
    dtype = _names(target)["dtype"]
    if model.quantization is not None:
        dtype += f", {_kept(model, target)}"
    if config.has_float8_kv:
        dtype += ", KV in float8"
    return f"{args.model_name}: {model.architecture}, {dtype}, {ranks} on " + (
        f"a GPU of {target.total_bytes / GIB:.1f} GiB" if target.device.type == "cuda" else "cpu"
    )


def _kept(model: ModelConfig, target: MemoryTarget) -> str:
    if model.quantization is None:
        return "as stored"
    return "quantised" if target.keeps_quantized else "dequantised"


def _table(memory: MemoryPlan, config: EngineConfig, target: MemoryTarget) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for row in memory.rows:
        table.add_row(row.label, f"{row.num_bytes / GIB:.2f} GiB", row.note)
    note = "of the GPU" if target.device.type == "cuda" else "of what is free on this machine"
    table.add_row("left free", f"{_left_bytes(memory, config, target) / GIB:.2f} GiB", note)
    return table


def _left_bytes(memory: MemoryPlan, config: EngineConfig, target: MemoryTarget) -> int:
    used = memory.weight_bytes + memory.activation_bytes + memory.kv_cache_bytes
    size = config.tensor_parallel_size
    return target.free_bytes(size) - used * (size if target.shares_memory else 1)


def _names(target: MemoryTarget) -> dict[str, str]:
    return {
        "device": target.device.type,
        "dtype": str(target.dtype).removeprefix("torch."),
        "packing": target.packing.name.lower(),
    }


def _as_json(
    args: ModelArgs,
    config: EngineConfig,
    model: ModelConfig,
    target: MemoryTarget,
    memory: MemoryPlan,
) -> dict[str, Any]:
    return {
        "model": args.model_name,
        "architecture": model.architecture,
        **_names(target),
        "checkpoint": _kept(model, target),
        "kv_cache_dtype": config.kv_cache_dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        **dataclasses.asdict(memory),
        "num_cache_tokens": memory.num_cache_tokens,
        "max_concurrency": memory.max_concurrency,
        "left_bytes": _left_bytes(memory, config, target),
    }
