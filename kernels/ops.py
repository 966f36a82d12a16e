"""The operations of a decoder: the fastest implementation for where the tensors live.

T tokens, N sequences, h KV heads, g query heads a KV head, d head size. Floating-point tensors
have the model's dtype unless said otherwise. `kernels.reference` is the oracle of each.
"""

from dataclasses import replace
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from kernels import (
    cpu_attention,
    cpu_elementwise,
    cpu_linear,
    gpu_library,
    native_attention,
    native_elementwise,
    native_halves,
    native_library,
    native_linear,
    quantized_linear,
    reference,
)
from kernels.attention_variant import AttentionVariant
from kernels.cpu_attention import CpuAttentionPlan
from kernels.cpu_attention_plan import CpuAttentionPlanner
from kernels.gpu.attention_plan import GpuAttentionPlan
from kernels.layout import AttentionGeometry, StepLayout
from kernels.native_attention import NativePlan, NativePlanner
from kernels.quantized_matrix import Matrix, QuantizedMatrix, round_to_fp8
from kernels.reference import ReferencePlan
from kernels.weights import (
    FeedForwardWeights,
    LinearWeight,
    NormWeight,
    Packing,
    SelfAttentionWeights,
)

AttentionPlan = NativePlan | CpuAttentionPlan | GpuAttentionPlan | ReferencePlan


class AttentionPlanner(Protocol):
    """Makes once for each step what all its layers share."""

    def plan(self, layout: StepLayout) -> AttentionPlan:
        """Plan one step; the plan is good until the next one is made."""


class Elementwise(Protocol):
    """What a module of elementwise operations offers."""

    def rms_norm(self, x: Tensor, norm: NormWeight) -> Tensor: ...  # noqa: D102  as below

    def add_rms_norm(self, x: Tensor, residual: Tensor, norm: NormWeight) -> Tensor: ...  # noqa: D102

    def silu_and_mul(self, gate_up: Tensor) -> Tensor: ...  # noqa: D102


def attention_planner(
    geometry: AttentionGeometry, windows: frozenset[int | None], device: torch.device
) -> AttentionPlanner:
    """Return the planner for a device. `windows`: every sliding window that layers ask for."""
    if device.type != "cpu":
        gpu = gpu_library.gpu_operations()
        if gpu is None:
            return reference.ReferencePlanner(geometry, device)
        planner: AttentionPlanner = gpu.GpuAttentionPlanner(geometry, windows, device)
        return planner
    if native_library.can_run(geometry.head_dim, geometry.dtype):
        return NativePlanner(geometry)
    return CpuAttentionPlanner(geometry, windows)


def choose_packing(dtype: torch.dtype, device: torch.device) -> Packing:
    """Return how `linear_weight` should pack for inputs of `dtype`; a trial, to be made once."""
    if device.type == "cpu" and native_linear.can_pack(dtype):
        return Packing.PANELS
    if device.type == "cpu" and cpu_linear.can_pack(dtype):
        return Packing.ONEDNN
    return Packing.NONE


def can_quantize(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `linear_weight` can pack to INT8_PANELS for inputs of `dtype`."""
    return device.type == "cpu" and native_linear.can_pack(dtype)


def keeps_quantized(device: torch.device) -> bool:
    """Whether quantised matrices are multiplied as they are; elsewhere they are dequantised."""
    return device.type == "cuda" and gpu_library.gpu_operations() is not None


def linear_weight(
    weight: Matrix, bias: Tensor | None, dtype: torch.dtype, packing: Packing
) -> LinearWeight:
    """Prepare a matrix [out, in] and its bias [out] for `linear` with inputs of `dtype`.

    They may come in any float dtype; drop the originals afterwards. What is quantised stays so,
    whatever the packing.
    """
    if packing is Packing.FP8 and isinstance(weight, Tensor):
        weight = round_to_fp8(weight)
    if isinstance(weight, QuantizedMatrix):
        return quantized_linear.pack(weight, bias, dtype)
    if packing.is_native:
        return native_linear.pack(weight, bias, packing)
    weight = weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    if packing is Packing.ONEDNN:
        return cpu_linear.pack(weight, bias)
    num_outputs, num_inputs = weight.shape
    return LinearWeight(weight, bias, num_inputs, num_outputs, packing)


def gated_weight(
    weight: Matrix, bias: Tensor | None, dtype: torch.dtype, packing: Packing
) -> LinearWeight:
    """Prepare [2 * ffn, in], gates first, and its bias for `gated_linear`, as `linear_weight`."""
    if packing.is_native and isinstance(weight, Tensor):
        return native_linear.pack_gated(weight, bias, packing)
    plain = linear_weight(weight, bias, dtype, packing)
    return replace(plain, num_outputs=plain.num_outputs // 2, is_gated=True)


def norm_weight(weight: Tensor, eps: float) -> NormWeight:
    """Prepare the gain [..., dim] of an RMS norm over `dim` elements."""
    dim = weight.shape[-1]
    floor = torch.tensor((eps * dim) ** 0.5, device=weight.device)
    return NormWeight(weight, eps, scaled=weight.float() * dim**0.5, floor=floor)


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias: [T, in] -> [T, out]."""
    assert not weight.is_gated
    return _product(x, weight)


def gated_linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return silu(gate) * up, both of them products of `x`: [T, in] -> [T, ffn]."""
    assert weight.is_gated
    product = _product(x, weight)
    return product if weight.packing.is_native else silu_and_mul(product)


def _product(x: Tensor, weight: LinearWeight) -> Tensor:
    if weight.packing.is_native:
        return native_linear.linear(x, weight)
    if weight.packing.is_grouped:
        return quantized_linear.linear(x, weight)
    if x.device.type == "cpu":
        return cpu_linear.linear(x, weight)
    return reference.linear(x, weight)


def rms_norm(x: Tensor, norm: NormWeight) -> Tensor:
    """Return the RMS norm of `x` [T, dim] over its last dimension."""
    return _implementation(x, x.shape[-1]).rms_norm(x, norm)


def add_rms_norm(x: Tensor, residual: Tensor, norm: NormWeight) -> Tensor:
    """Add `x` [T, dim] to `residual` [T, dim] in place; return the RMS norm of the sum."""
    return _implementation(x, x.shape[-1]).add_rms_norm(x, residual, norm)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up: [T, 2 * ffn], gate first -> [T, ffn]."""
    return _implementation(gate_up, gate_up.shape[-1] // 2).silu_and_mul(gate_up)


def _implementation(x: Tensor, width: int) -> Elementwise:
    if x.device.type != "cpu":
        return gpu_library.gpu_operations() or reference
    is_native = native_library.can_run(width, x.dtype)
    return native_elementwise if is_native else cpu_elementwise


def _gpu() -> ModuleType:
    gpu = gpu_library.gpu_operations()
    assert gpu is not None, "a plan for the GPU was made without its kernels"
    return gpu


def rotate_and_store(
    heads: Tensor,
    norm: NormWeight | None,
    rotation: Tensor,
    kv_cache: Tensor,
    plan: AttentionPlan,
) -> None:
    """Norm and rotate queries and keys in place; write keys and values to the step's slots.

    heads [T, h, g queries + key + value, d] contiguous; norm: gain [g + 1, d], None: no norm;
    rotation [T, d / 2] complex64, a factor for each pair (0, 1), (2, 3), ... of a head;
    kv_cache [2 (keys, values), num_blocks, h, block_size, d], its blocks this op's own affair.
    """
    if isinstance(plan, NativePlan):
        native_attention.rotate_and_store(heads, norm, rotation, kv_cache, plan)
        return
    query_key, key_value = heads[:, :, :-1], heads[:, :, -2:]
    if isinstance(plan, CpuAttentionPlan):
        if norm is not None:
            cpu_elementwise.rms_norm_(query_key, norm)
        cpu_elementwise.rotary_(query_key, rotation[:, None, None])
        cpu_attention.store_kv(key_value, kv_cache, plan)
        return
    if isinstance(plan, GpuAttentionPlan):
        _gpu().rotate_and_store(heads, norm, rotation, kv_cache, plan.slot_mapping, plan.scales)
        return
    if norm is not None:
        reference.rms_norm_(query_key, norm)
    reference.rotary_(query_key, rotation[:, None, None])
    reference.store_kv(key_value, kv_cache, plan, AttentionVariant(scales=plan.scales))


def paged_attention(
    query: Tensor, kv_cache: Tensor, plan: AttentionPlan, window: int | None
) -> Tensor:
    """Attend each query over its sequence's keys up to its own position.

    query [T, h, g, d]: the view of them in the heads that `rotate_and_store` has had;
    kv_cache as there, with the step's own tokens in it;
    window: positions seen, counted back from the query's own; None: all.
    Returns [T, h * g * d]. It may be overwritten by the next call with the same plan.
    Blocks and slots that belong to no sequence may hold anything.
    """
    if isinstance(plan, NativePlan):
        return native_attention.paged_attention(query, kv_cache, plan, window)
    if isinstance(plan, CpuAttentionPlan):
        return cpu_attention.paged_attention(query, kv_cache, plan, window)
    variant = AttentionVariant(window, scales=plan.scales)
    if isinstance(plan, GpuAttentionPlan):
        output: Tensor = _gpu().paged_attention(query, kv_cache, plan, variant)
        return output
    return reference.paged_attention(query, kv_cache, plan, variant)


def self_attention_weights(
    norm: NormWeight,
    qkv: LinearWeight,
    qk_norm: NormWeight | None,
    output: LinearWeight,
    window: int | None,
) -> SelfAttentionWeights:
    """Put together what `self_attention` needs, see there and `SelfAttentionWeights`."""
    native = native_halves.find_self_attention(norm, qkv, qk_norm, output, window)
    return SelfAttentionWeights(norm, qkv, qk_norm, output, window, native)


def self_attention(
    x: Tensor | None,
    residual: Tensor,
    weights: SelfAttentionWeights,
    rotation: Tensor,
    kv_cache: Tensor,
    plan: AttentionPlan,
    rows: Tensor | None,
) -> Tensor:
    """Add `x` [T, hidden], unless None, to `residual` in place; return attention to its norm.

    That is `add_rms_norm`, `linear` with qkv, `rotate_and_store`, `paged_attention`, and `linear`
    with output for the tokens `rows` [R] int64, in their order; None: all.
    Returns [R, hidden] without the residual.
    """
    if weights.native is not None and isinstance(plan, NativePlan):
        return native_halves.self_attention(x, residual, weights, rotation, kv_cache, plan, rows)
    norm = weights.norm
    x = rms_norm(residual, norm) if x is None else add_rms_norm(x, residual, norm)
    _, _, num_kv_heads, _, head_dim = kv_cache.shape
    heads = linear(x, weights.qkv).view(len(x), num_kv_heads, -1, head_dim)
    rotate_and_store(heads, weights.qk_norm, rotation, kv_cache, plan)
    attended = paged_attention(heads[:, :, :-2], kv_cache, plan, weights.window)
    return linear(attended if rows is None else attended[rows], weights.output)


def feed_forward_weights(
    norm: NormWeight, gate_up: LinearWeight, down: LinearWeight
) -> FeedForwardWeights:
    """Put together what `feed_forward` needs, see there and `FeedForwardWeights`."""
    native = native_halves.find_feed_forward(norm, gate_up, down)
    return FeedForwardWeights(norm, gate_up, down, native)


def feed_forward(x: Tensor, residual: Tensor, weights: FeedForwardWeights) -> Tensor:
    """Add `x` [T, hidden] to `residual` in place; return the feed-forward network of its norm.

    That is `add_rms_norm`, `gated_linear` and `linear`. Returns [T, hidden] without the residual.
    """
    if weights.native is not None:
        return native_halves.feed_forward(x, residual, weights)
    x = add_rms_norm(x, residual, weights.norm)
    return linear(gated_linear(x, weights.gate_up), weights.down)
