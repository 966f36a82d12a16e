"""The launches of real models: every kernel in the shapes and dtypes that the engine uses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kernels import ops, quantized_linear
from kernels.attention_variant import PLAIN, AttentionVariant
from kernels.gpu import gated_activation, rms_norm
from kernels.gpu.attention_planner import GpuAttentionPlanner
from kernels.gpu.copy_blocks import block_planes, copy_blocks
from kernels.gpu.fp8_linear import fp8_linear
from kernels.gpu.int4_linear import int4_linear
from kernels.gpu.paged_attention import paged_attention
from kernels.gpu.rotate_and_store import rotate_and_store
from kernels.gpu.sample import sample
from kernels.layout import AttentionGeometry, StepLayout
from kernels.quantized_matrix import QuantizedMatrix, StoredAs
from kernels.sampling_rows import DrawParams, SeenTokens

Launch = tuple[str, Callable[[], object]]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """What of a model the kernels see."""

    num_kv_heads: int
    group_size: int
    head_dim: int
    hidden: int
    ffn: int


MODELS = {
    "SmolLM2-135M": Shape(3, 3, 64, 576, 1536),
    "Llama-3.1-8B": Shape(8, 4, 128, 4096, 14336),
    "Gemma-2-9B": Shape(8, 2, 256, 3584, 14336),
    "Phi-3-mini": Shape(32, 1, 96, 3072, 8192),
}


def launch_all(has_float8: bool) -> Iterator[Launch]:
    """Yield a label and what launches; the launches of one label may be several kernels."""
    llama = MODELS["Llama-3.1-8B"]
    for name, dtype in (
        ("SmolLM2-135M", torch.bfloat16),
        ("Llama-3.1-8B", torch.bfloat16),
        ("Llama-3.1-8B", torch.float32),
    ):
        for label, run in _layer(MODELS[name], dtype):
            yield f"{label} {name} {dtype}", run
    yield from _attention(llama, has_float8)
    for dtype in (torch.bfloat16, torch.float32):
        yield f"sample {dtype}", partial(_sample, dtype)
    for stored_as in StoredAs:
        for num_tokens in (1, 256):
            label = f"{stored_as.name} linear, {num_tokens} tokens"
            yield label, partial(_multiply, llama, stored_as, num_tokens)
    planes = block_planes([torch.zeros(2, 4, 8, 16, 128, dtype=torch.bfloat16)], CPU)
    yield "copy", partial(copy_blocks, planes, planes, [(0, 1)])


def _attention(llama: Shape, has_float8: bool) -> Iterator[Launch]:
    """Yield attention in other shapes, dtypes and variants."""
    for name in ("Gemma-2-9B", "Phi-3-mini"):
        yield f"attention {name}", partial(_attend, MODELS[name], torch.bfloat16, PLAIN)
    yield "attention float16", partial(_attend, llama, torch.float16, PLAIN)
    sinks = torch.zeros(llama.num_kv_heads, llama.group_size)
    variants = {
        "window": AttentionVariant(window=4096),
        "softcap and sinks": AttentionVariant(softcap=50.0, sinks=sinks),
    }
    if has_float8:
        variants["float8"] = AttentionVariant(scales=(torch.ones(()), torch.ones(())))
    for label, variant in variants.items():
        yield f"attention {label}", partial(_attend, llama, torch.bfloat16, variant)


def _sample(dtype: torch.dtype) -> None:
    """Launch a draw, plain and with all that it can be asked for."""
    num_rows, vocab_size = 2, 151_936
    logits = torch.zeros(num_rows, vocab_size, dtype=dtype)
    ones, words = torch.ones(num_rows), -(-vocab_size // 32)
    ints = torch.ones(num_rows, dtype=torch.int32)
    params = DrawParams(ones, ints, ones, ones, ints.long(), ints, ints)
    bits = torch.zeros(num_rows, words, dtype=torch.int32)
    counts = torch.zeros(num_rows, vocab_size, dtype=torch.int32)
    sample(logits, params)
    seen = SeenTokens(ones, ones, ones, bits, counts)
    sample(logits, params, bits, seen, with_logprobs=True)


def _multiply(shape: Shape, stored_as: StoredAs, num_tokens: int) -> None:
    """Launch a product with a matrix that stays quantised, in groups and by output."""
    num_inputs, num_outputs = shape.hidden, 256
    values = torch.ones(num_outputs, num_inputs, dtype=torch.uint8)
    size = 128 if stored_as is StoredAs.INT4 else num_inputs
    groups = torch.arange(num_inputs) // size
    scales = torch.ones(num_outputs, num_inputs // size)
    zeros = scales.to(torch.uint8) if stored_as is StoredAs.INT4 else None
    matrix = QuantizedMatrix(stored_as, values, scales, zeros, groups)
    x = torch.zeros(num_tokens, num_inputs, dtype=torch.bfloat16)
    multiply = int4_linear if stored_as is StoredAs.INT4 else fp8_linear
    multiply(x, quantized_linear.pack(matrix, None, torch.bfloat16))


def _layer(shape: Shape, dtype: torch.dtype) -> Iterator[Launch]:
    x = torch.zeros(2, shape.hidden, dtype=dtype)
    norm = ops.norm_weight(torch.ones(shape.hidden, dtype=dtype), 1e-5)
    yield "norm", lambda: (rms_norm.rms_norm(x, norm), rms_norm.add_rms_norm(x, x, norm))
    gate_up = torch.zeros(2, 2 * shape.ffn, dtype=dtype)
    yield "activation", lambda: gated_activation.silu_and_mul(gate_up)
    yield "attention", partial(_attend, shape, dtype, PLAIN)


def _attend(shape: Shape, dtype: torch.dtype, variant: AttentionVariant) -> Tensor:
    """Launch rotation, decode, combination and prefill."""
    geometry = AttentionGeometry(
        64, 16, shape.num_kv_heads, shape.group_size, shape.head_dim, dtype
    )
    # Sequences with one query and with several.
    starts = np.array([0, 1, 4], dtype=np.int32)
    seq_lens = np.array([300, 40], dtype=np.int32)
    tables = np.arange(38, dtype=np.int32).reshape(2, 19)
    slots = np.array([299, 341, 342, 343], dtype=np.int32)
    layout = StepLayout(starts, seq_lens, tables, slots, np.arange(2, dtype=np.int32))
    plan = GpuAttentionPlanner(geometry, frozenset([variant.window]), CPU).plan(layout)
    cache_dtype = torch.float8_e4m3fn if variant.scales else dtype
    kv_cache = torch.zeros(geometry.cache_shape).to(cache_dtype)
    heads = torch.zeros(4, shape.num_kv_heads, shape.group_size + 2, shape.head_dim, dtype=dtype)
    gain = ops.norm_weight(torch.ones(shape.group_size + 1, shape.head_dim, dtype=dtype), 1e-6)
    rotation = torch.ones(4, shape.head_dim // 2, dtype=torch.complex64)
    for norm in (None, gain) if variant is PLAIN else (None,):
        rotate_and_store(heads, norm, rotation, kv_cache, plan.slot_mapping, variant.scales)
    return paged_attention(heads[:, :, :-2], kv_cache, plan, variant)
