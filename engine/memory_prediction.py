"""Predict a rank's memory plan from the model's shape, before anything is loaded.

Plain arithmetic on `ModelConfig`: no file, no tensor, no device. Of the start it shares the words
and the rules (engine/kv_cache.py); what the start counts or measures, this says beforehand:

- weights: see `weight_bytes`.
- step: see `step_bytes` and `kept_bytes`.
- KV cache: what `cache_bytes` gives once the weights are loaded.
"""

import torch

from engine.config import EngineConfig
from engine.errors import InvalidConfig
from engine.kv_cache import (
    GIB,
    MIB,
    MemoryPlan,
    attention_geometry,
    cache_bytes,
    choose_max_model_len,
    num_blocks_in,
    num_host_blocks_in,
    usable_bytes,
)
from engine.memory_target import MemoryTarget
from engine.model_config import ModelConfig, check_parallel_size
from engine.models.decoder_weights import local_heads
from engine.weight_prediction import check_groups, weight_bytes
from kernels.weights import Packing

_FLOAT_BYTES = torch.float32.itemsize
# cuBLAS takes it of torch's memory at the first product; on Hopper and later, 8 MiB before.
_CUBLAS_WORKSPACE_BYTES = 32 << 20


def predict_memory(config: EngineConfig, model: ModelConfig, target: MemoryTarget) -> MemoryPlan:
    """Return the plan that a start with these settings would print, of rank 0.

    Raises InvalidConfig where the start would refuse the settings, and where weights, a step and
    the KV cache take more than there is.
    """
    size = config.tensor_parallel_size
    check_parallel_size(model, size)
    if target.keeps_quantized:
        check_groups(model, size)
    weights = weight_bytes(model, size, target.dtype, target.packing, target.keeps_quantized)
    settings = (config, model, target.dtype, target.packing, target.device)
    step = step_bytes(*settings) + kept_bytes(*settings)
    geometry = attention_geometry(
        model, size, target.dtype, config.block_size, num_blocks=1, is_float8=config.has_float8_kv
    )
    block_bytes = geometry.block_bytes * model.num_layers
    free, total = target.free_bytes(size), target.total_bytes
    sharing = size if target.shares_memory else 1
    left = free - weights * sharing
    budget = cache_bytes(config, size, target.device, left, total, step)
    usable = usable_bytes(config, target.device, free, total) // sharing
    _check_room(weights, step, budget, block_bytes, usable)
    num_blocks = num_blocks_in(budget, block_bytes)
    return MemoryPlan(
        weight_bytes=weights,
        activation_bytes=step,
        kv_cache_bytes=num_blocks * block_bytes,
        block_bytes=block_bytes,
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_model_len=choose_max_model_len(config, model, num_blocks),
        num_host_blocks=num_host_blocks_in(config, size, block_bytes, target.host_bytes),
    )


def step_bytes(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    packing: Packing,
    device: torch.device,
) -> int:
    """Return the most that a step needs on rank 0 beside weights and KV cache.

    That is a step of `max_num_batched_tokens`, as many as may be in sequences as long as they get,
    whose next token is wanted for as many as there may be. It counts what lives at once, the
    larger of two moments:

    - inside a layer: for each token the residual, what is added to it, its norm and what follows:
      queries, keys, values and attention's output, or gate, up and their product; and the
      rotation. Attention itself counts as needing no more, which holds for the kernels (they
      never write scores down) and not for `kernels.reference`.
    - at the end: logits, with more than one rank also the parts they are gathered from, and what
      the sampler adds, see `sampler_bytes`.

    On CUDA, cuBLAS' workspace comes on top. The integers of a step are too small to count.
    """
    num_tokens = config.max_num_batched_tokens
    num_rows = min(config.max_num_seqs, num_tokens)
    logits = num_rows * _row_bytes(config, model, dtype)
    in_layer = num_tokens * _token_bytes(config, model, dtype, packing)
    workspace = _CUBLAS_WORKSPACE_BYTES if device.type == "cuda" else 0
    return max(in_layer, logits + sampler_bytes(config, model, device)) + workspace


def kept_bytes(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    packing: Packing,
    device: torch.device,
) -> int:
    """Return what rank 0 keeps on a GPU for all steps: rotations and decode graphs.

    The memory of graphs (engine/cuda_graph.py) is theirs for good, so a step without one needs its
    own beside it: what the largest one has at once, and the logits that they return. It is recorded
    first, and the others, at start or while requests are served, share its memory.
    """
    if device.type != "cuda":
        return 0
    rotations = (config.max_model_len or model.max_position) * model.head_dim * _FLOAT_BYTES
    if config.enforce_eager:
        return rotations
    num_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
    row = _row_bytes(config, model, dtype)
    returned = model.vocab_size * dtype.itemsize
    at_once = max(row, _token_bytes(config, model, dtype, packing))
    return rotations + num_rows * (at_once + returned)


def _token_bytes(
    config: EngineConfig, model: ModelConfig, dtype: torch.dtype, packing: Packing
) -> int:
    """Return what lives at once for each token inside a layer."""
    size = config.tensor_parallel_size
    num_kv_heads, group_size = local_heads(model, size)
    hidden, ffn = model.hidden_size, model.intermediate_size // size
    attended = num_kv_heads * group_size * model.head_dim
    heads = num_kv_heads * (group_size + 2) * model.head_dim
    attention_width = 4 * hidden + heads + attended  # residual, addend, norm, result
    # The compiled kernels activate as they multiply, so gate and up are never written.
    both = ffn + hidden if packing.is_native else max(3 * ffn, ffn + hidden)
    layer_width = max(attention_width, 3 * hidden + both)
    # The rotation has a complex64 for each pair.
    return layer_width * dtype.itemsize + model.head_dim * _FLOAT_BYTES


def _row_bytes(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Return what lives at once for each row of logits."""
    size = config.tensor_parallel_size
    vocab_share = -(-model.vocab_size // size)
    width = vocab_share if size == 1 else vocab_share + 2 * size * vocab_share
    return width * dtype.itemsize


def sampler_bytes(config: EngineConfig, model: ModelConfig, device: torch.device) -> int:
    """Return what sampling needs beside the logits, in tables of their size in float32.

    On CPU one is their copy, another is made where the rows are a mixture, or the vocabulary does
    not divide into the sampler's segments. On a GPU two are counts of tokens for penalties, of the
    rows before and of those now, one is the copy that bias changes, and two more are there while
    log probabilities are reported.
    """
    num_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
    num_tables = 5 if device.type == "cuda" else 2
    return num_tables * num_rows * model.vocab_size * _FLOAT_BYTES


def _check_room(weights: int, step: int, cache: int, block: int, usable: int) -> None:
    if weights + step + max(cache, block) <= usable:
        return
    kv = f"{cache / GIB:.2f} GiB for KV"
    if cache < block:
        kv = f"{block / MIB:.1f} MiB for a first block of KV"
    raise InvalidConfig(
        f"A rank needs {weights / GIB:.2f} GiB for weights, {step / GIB:.2f} GiB for a step and "
        f"{kv}, and {usable / GIB:.2f} GiB may be used.",
        "Use more ranks or more memory, or make steps or model smaller.",
    )
