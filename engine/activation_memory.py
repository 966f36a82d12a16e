"""What the largest step needs beside weights and KV cache."""

from collections.abc import Sequence

import numpy as np
import torch

from engine.compute_threads import ComputeThreads
from engine.config import EngineConfig
from engine.kv_cache import attention_geometry
from engine.latest_tokens import LatestTokens
from engine.memory_prediction import kept_bytes, sampler_bytes, step_bytes
from engine.model_config import ModelConfig
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.parallel import TensorParallel
from engine.rotary import rotation_table
from engine.step_input import StepInput
from kernels.layout import StepLayout


def activation_bytes(
    config: EngineConfig,
    model: ModelConfig,
    decoder: Decoder,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Return it: measured on CUDA, where running out ends the engine; predicted on CPU.

    What is kept for all steps is predicted: it is taken of the memory that is left.
    """
    packing = decoder.layers[0].feed_forward.weights.down.packing
    if device.type == "cuda":
        measured = _measure(config, model, decoder, dtype, device)
        return measured + kept_bytes(config, model, dtype, packing, device)
    return step_bytes(config, model, dtype, packing, device)


def example_step(query_lens: Sequence[int], block_size: int, num_rows: int) -> StepInput:
    """Return a step of fresh sequences of these lengths, in blocks from 0 on.

    Args:
        query_lens: tokens of each sequence, single ones first.
        block_size: of the KV cache.
        num_rows: logits wanted, for the first `num_rows` tokens.
    """
    seq_lens = np.array(query_lens, dtype=np.int32)
    num_blocks = -(-seq_lens // block_size)
    first_blocks = np.cumsum(num_blocks) - num_blocks
    block_tables = first_blocks[:, None] + np.arange(num_blocks.max())
    query_start_loc = np.concatenate(([0], np.cumsum(seq_lens)))
    positions = np.arange(query_start_loc[-1]) - np.repeat(query_start_loc[:-1], seq_lens)
    slot_mapping = positions + np.repeat(first_blocks * block_size, seq_lens)
    layout = StepLayout(
        query_start_loc.astype(np.int32),
        seq_lens,
        block_tables.astype(np.int32),
        slot_mapping.astype(np.int32),
        np.arange(len(seq_lens), dtype=np.int32),
    )
    return StepInput(
        token_ids=np.zeros(len(positions), dtype=np.int32),
        positions=positions.astype(np.int32),
        logits_rows=np.arange(num_rows, dtype=np.int32),
        layout=layout,
    )


def _measure(
    config: EngineConfig,
    model: ModelConfig,
    decoder: Decoder,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    num_tokens = config.max_num_batched_tokens
    longest = min(num_tokens, config.max_model_len or model.max_position)
    query_lens = [longest] * (num_tokens // longest)
    if num_tokens % longest:
        query_lens.insert(0, num_tokens % longest)
    step = example_step(query_lens, config.block_size, min(config.max_num_seqs, num_tokens))
    num_blocks = int(step.layout.block_tables[-1, -1]) + 1
    geometry = attention_geometry(
        model,
        config.tensor_parallel_size,
        dtype,
        config.block_size,
        num_blocks,
        is_float8=config.has_float8_kv,
    )
    rotations = rotation_table(model.rope, model.head_dim, longest, device)
    latest = LatestTokens(TensorParallel.single(), config.max_num_seqs, device)
    runner = ModelRunner(decoder, geometry, rotations, latest, device, ComputeThreads(1))
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    logits = runner.forward(step)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    if logits is not None:
        # They stay while the sampler adds its own, which no step without requests can show.
        kept = torch.cuda.memory_allocated(device) - before
        peak = max(peak, kept + sampler_bytes(config, model, device))
    del runner, logits
    torch.cuda.empty_cache()
    return peak
