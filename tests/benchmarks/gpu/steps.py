"""Whole steps of a model: decodes over the time to read weights and KV, prefill over a matmul.

And the engine's own steps, in which the host has to keep up: what it takes beyond the device.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np

from engine.activation_memory import example_step
from engine.build import BuildReport, BuiltEngine, build_engine
from engine.config import EngineConfig
from engine.model_runner import ModelRunner
from engine.parallel import TensorParallel
from engine.step_input import StepInput
from kernels.layout import StepLayout
from tests.benchmarks.gpu.bench import Bench, Rows
from tests.benchmarks.gpu.device import device_seconds
from tests.benchmarks.gpu.host_gap import measure_host_gap

_PREFILL_REPEATS = 8


def measure_steps(bench: Bench, folder: Path) -> Rows:
    """Yield a row for each shape that fits, before them one for the start."""
    sizes, name = bench.sizes, folder.name
    started = time.perf_counter()
    config = EngineConfig(
        model_path=folder,
        model_name=name,
        load_format="dummy",
        device=bench.device.place.type,
        max_model_len=max(sizes.contexts),
        max_num_seqs=max(*sizes.batches, *sizes.engine_batches),
        max_num_batched_tokens=max(sizes.prefills),
        block_size=sizes.block_size,
        kv_cache_bytes=sizes.kv_cache_bytes,
    )
    built = build_engine(config, TensorParallel.single())
    phases = {phase: round(seconds, 2) for phase, seconds in built.report.phase_s.items()}
    yield {"what": f"{name} start", "s": time.perf_counter() - started, **phases}
    runner = _runner(built)
    yield from _decodes(bench, name, runner, built.report)
    yield from _prefills(bench, name, runner, built.report)
    yield from measure_host_gap(bench, name, built.core)
    built.core.shutdown()


def _runner(built: BuiltEngine) -> ModelRunner:
    runner: ModelRunner = built.core._pipeline._executor._runner  # type: ignore[attr-defined]
    return runner


def _decodes(bench: Bench, name: str, runner: ModelRunner, built: BuildReport) -> Rows:
    sizes, device, memory, model = bench.sizes, bench.device, built.memory, built.model
    token_bytes = memory.block_bytes / memory.block_size
    # Of an embedding that is not the output matrix too, a step reads next to nothing.
    embedding = 0 if model.tie_embeddings else 2 * model.vocab_size * model.hidden_size
    for context in sizes.contexts:
        for batch in sizes.batches:
            what = f"{name} decode {batch} x {context}"
            if batch * -(-context // memory.block_size) > memory.num_blocks:
                yield {"what": what, "skipped": f"KV for {memory.num_cache_tokens} tokens only"}
                continue
            run = partial(runner.forward, _decode_step(batch, context, memory.block_size))
            seconds = device_seconds(device, run, sizes.repeats, head_start=False)
            busy_s = device_seconds(device, run, sizes.repeats)
            num_bytes = memory.weight_bytes - embedding + batch * context * token_bytes
            floor_s = bench.ceilings.seconds(num_bytes, 0)
            yield {
                "what": what,
                "ms": seconds * 1e3,
                "device ms": busy_s * 1e3,
                "floor ms": floor_s * 1e3,
                "of ceiling": floor_s / seconds,
            }


def _prefills(bench: Bench, name: str, runner: ModelRunner, built: BuildReport) -> Rows:
    model = built.model
    for num_tokens in bench.sizes.prefills:
        step = example_step([num_tokens], built.memory.block_size, num_rows=1)
        run = partial(runner.forward, step)
        repeats = min(bench.sizes.repeats, _PREFILL_REPEATS)
        seconds = device_seconds(bench.device, run, repeats, head_start=False)
        width = model.num_heads * model.head_dim
        attention = 2 * num_tokens**2 * width * model.num_layers
        # Weights that every token meets: all but the embedding and the output matrix.
        outer = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
        inner = built.memory.weight_bytes / 2 - outer
        # Beyond its keys and values, the last layer computes the wanted row alone.
        inner -= model.hidden_size * (width + 3 * model.intermediate_size)
        floor_s = bench.ceilings.seconds(0, 2 * inner * num_tokens + attention)
        yield {
            "what": f"{name} prefill {num_tokens}",
            "ms": seconds * 1e3,
            "tokens/s": num_tokens / seconds,
            "floor ms": floor_s * 1e3,
            "of ceiling": floor_s / seconds,
        }


def _decode_step(batch: int, context: int, block_size: int) -> StepInput:
    """One token each of sequences that have `context` tokens then."""
    num_blocks = -(-context // block_size)
    tables = np.arange(batch * num_blocks, dtype=np.int32).reshape(batch, num_blocks)
    last = context - 1
    layout = StepLayout(
        query_start_loc=np.arange(batch + 1, dtype=np.int32),
        seq_lens=np.full(batch, context, dtype=np.int32),
        block_tables=tables,
        slot_mapping=(tables[:, last // block_size] * block_size + last % block_size),
        rows=np.arange(batch, dtype=np.int32),
    )
    ids = np.ones(batch, dtype=np.int32)
    return StepInput(ids, ids * last, np.arange(batch, dtype=np.int32), layout)
