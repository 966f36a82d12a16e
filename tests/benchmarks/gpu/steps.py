"""Whole steps of a model: decodes over the time to read weights and KV, prefill over a matmul."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine import LLM, SamplingParams
from engine.activation_memory import example_step
from engine.build import BuildReport, build_runner
from engine.config import EngineConfig
from engine.model_runner import ModelRunner
from engine.parallel import TensorParallel
from engine.step_input import StepInput
from kernels.layout import StepLayout
from tests.benchmarks.gpu.timing import Ceilings, device_seconds

_BLOCK_SIZE = 16
_BATCHES = (1, 8, 64, 256)
_CONTEXTS = (1024, 8192)
_PREFILLS = (512, 2048, 8192)
_MAX_MODEL_LEN = 8192


def measure_steps(folder: Path, ceilings: Ceilings) -> Iterator[dict[str, Any]]:
    """Yield a row for each shape that fits, and one for the start."""
    started = time.perf_counter()
    config = EngineConfig(
        model_path=folder,
        model_name=folder.name,
        load_format="dummy",
        device="cuda",
        max_model_len=_MAX_MODEL_LEN,
        max_num_batched_tokens=max(_PREFILLS),
        block_size=_BLOCK_SIZE,
    )
    runner, built = build_runner(config, TensorParallel.single())
    phases = {name: round(seconds, 2) for name, seconds in built.phase_s.items()}
    yield {"what": f"{folder.name} start", "s": time.perf_counter() - started, **phases}
    token_bytes = built.memory.block_bytes / _BLOCK_SIZE
    model = built.model
    # Of an embedding that is not the output matrix too, a step reads next to nothing.
    embedding = 0 if model.tie_embeddings else 2 * model.vocab_size * model.hidden_size
    for context in _CONTEXTS:
        for batch in _BATCHES:
            if batch * (context + _BLOCK_SIZE) > built.memory.num_cache_tokens:
                continue
            step = _decodes(batch, context)
            seconds = device_seconds(partial(runner.forward, step))
            num_bytes = built.memory.weight_bytes - embedding + batch * context * token_bytes
            floor_s = num_bytes / ceilings.gb_per_s / 1e9
            yield {
                "what": f"{folder.name} decode {batch} x {context}",
                "ms": seconds * 1e3,
                "floor ms": floor_s * 1e3,
                "of ceiling": floor_s / seconds,
            }
    yield from _prefills(folder.name, runner, built, ceilings)


def _prefills(
    name: str, runner: ModelRunner, built: BuildReport, ceilings: Ceilings
) -> Iterator[dict[str, Any]]:
    model = built.model
    for num_tokens in _PREFILLS:
        step = example_step([num_tokens], _BLOCK_SIZE, num_rows=1)
        seconds = device_seconds(partial(runner.forward, step), repeats=8)
        width = model.num_heads * model.head_dim
        attention = 2 * num_tokens**2 * width * model.num_layers
        # Weights that every token meets: all but the embedding and the output matrix.
        outer = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
        inner = built.memory.weight_bytes / 2 - outer
        # Beyond its keys and values, the last layer computes the wanted row alone.
        inner -= model.hidden_size * (width + 3 * model.intermediate_size)
        floor_s = (2 * inner * num_tokens + attention) / ceilings.tflop_per_s / 1e12
        yield {
            "what": f"{name} prefill {num_tokens}",
            "ms": seconds * 1e3,
            "tokens/s": num_tokens / seconds,
            "floor ms": floor_s * 1e3,
            "of ceiling": floor_s / seconds,
        }


def _decodes(batch: int, context: int) -> StepInput:
    """One token each of sequences that have `context` tokens then."""
    num_blocks = -(-context // _BLOCK_SIZE)
    tables = np.arange(batch * num_blocks, dtype=np.int32).reshape(batch, num_blocks)
    last = context - 1
    layout = StepLayout(
        query_start_loc=np.arange(batch + 1, dtype=np.int32),
        seq_lens=np.full(batch, context, dtype=np.int32),
        block_tables=tables,
        slot_mapping=(tables[:, last // _BLOCK_SIZE] * _BLOCK_SIZE + last % _BLOCK_SIZE),
        rows=np.arange(batch, dtype=np.int32),
    )
    ids = np.ones(batch, dtype=np.int32)
    return StepInput(ids, ids * last, np.arange(batch, dtype=np.int32), layout)


def measure_throughput(folder: Path, num_requests: int = 512) -> Iterator[dict[str, Any]]:
    """Yield output tokens per second of the whole engine, saturated, and the host's part of it."""
    with LLM(
        folder,
        load_format="dummy",
        device="cuda",
        max_model_len=2048,
        max_num_batched_tokens=8192,
        enable_prefix_caching=False,
    ) as llm:
        llm.generate([[1] * 128] * 2, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
        for num_seqs, num_output in ((num_requests, 128), (64, 256)):
            prompts = [[1 + (i * 7 + k) % 1000 for k in range(128)] for i in range(num_seqs)]
            params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
            started = time.perf_counter()
            llm.generate(prompts, params)
            wall_s = time.perf_counter() - started
            yield {
                "what": f"{folder.name} engine {num_seqs} requests, 128 in, {num_output} out",
                "s": wall_s,
                "tokens/s": num_seqs * num_output / wall_s,
            }
