"""The operations of a decoder: the fastest implementation for where the tensors live.

T tokens, N sequences, h KV heads, g query heads a KV head, d head size. Floating-point tensors
have the model's dtype unless said otherwise. `kernels.reference` is the oracle of each.
"""

from typing import Protocol

import torch
from torch import Tensor

from kernels import cpu_attention, cpu_elementwise, cpu_linear, reference
from kernels.cpu_attention import CpuAttentionPlan
from kernels.cpu_attention_plan import CpuAttentionPlanner
from kernels.layout import AttentionGeometry, StepLayout
from kernels.reference import ReferencePlan
from kernels.weights import LinearWeight, NormWeight

AttentionPlan = CpuAttentionPlan | ReferencePlan


class AttentionPlanner(Protocol):
    """Makes once for each step what all its layers share."""

    def plan(self, layout: StepLayout) -> AttentionPlan:
        """Plan one step; the plan is good until the next one is made."""


def attention_planner(
    geometry: AttentionGeometry, windows: frozenset[int | None], device: torch.device
) -> AttentionPlanner:
    """Return the planner for a device. `windows`: every sliding window that layers ask for."""
    if device.type == "cpu":
        return CpuAttentionPlanner(geometry, windows)
    return reference.ReferencePlanner(geometry, device)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `linear_weight` should pack; a trial, to be made once."""
    return device.type == "cpu" and cpu_linear.can_pack(dtype)


def linear_weight(weight: Tensor, bias: Tensor | None, *, pack: bool) -> LinearWeight:
    """Prepare a matrix [out, in] and its bias [out]; drop the originals afterwards."""
    if pack:
        return cpu_linear.pack(weight, bias)
    return LinearWeight(weight, bias, is_packed=False)


def norm_weight(weight: Tensor, eps: float) -> NormWeight:
    """Prepare the gain [..., dim] of an RMS norm over `dim` elements."""
    dim = weight.shape[-1]
    floor = torch.tensor((eps * dim) ** 0.5, device=weight.device)
    return NormWeight(weight, eps, scaled=weight.float() * dim**0.5, floor=floor)


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias: [T, in] -> [T, out]."""
    if x.device.type == "cpu":
        return cpu_linear.linear(x, weight)
    return reference.linear(x, weight)


def rms_norm(x: Tensor, norm: NormWeight) -> Tensor:
    """Return the RMS norm of `x` [..., dim] over its last dimension."""
    if x.device.type == "cpu":
        return cpu_elementwise.rms_norm(x, norm)
    return reference.rms_norm(x, norm)


def rms_norm_(x: Tensor, norm: NormWeight) -> Tensor:
    """Norm `x` [..., dim] in place; it may be strided. Returns it."""
    if x.device.type == "cpu":
        return cpu_elementwise.rms_norm_(x, norm)
    return reference.rms_norm_(x, norm)


def add_rms_norm(x: Tensor, residual: Tensor, norm: NormWeight) -> Tensor:
    """Add `x` [T, dim] to `residual` [T, dim] in place; return the RMS norm of the sum."""
    if x.device.type == "cpu":
        return cpu_elementwise.add_rms_norm(x, residual, norm)
    return reference.add_rms_norm(x, residual, norm)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up: [T, 2 * ffn], gate first -> [T, ffn]."""
    if gate_up.device.type == "cpu":
        return cpu_elementwise.silu_and_mul(gate_up)
    return reference.silu_and_mul(gate_up)


def rotary_(heads: Tensor, rotation: Tensor) -> Tensor:
    """Rotate pairs (0, 1), (2, 3), ... of the last dimension in place; return `heads`.

    heads [T, h, any, d] may be strided; rotation [T, 1, 1, d / 2] complex64: a factor a pair.
    """
    if heads.device.type == "cpu":
        return cpu_elementwise.rotary_(heads, rotation)
    return reference.rotary_(heads, rotation)


def store_kv(key_value: Tensor, kv_cache: Tensor, plan: AttentionPlan) -> None:
    """Write keys and values to the slots of the step's tokens.

    key_value [T, h, 2 (key, value), d] may be strided;
    kv_cache [2 (keys, values), num_blocks, h, block_size, d].
    """
    if isinstance(plan, CpuAttentionPlan):
        cpu_attention.store_kv(key_value, kv_cache, plan)
    else:
        reference.store_kv(key_value, kv_cache, plan)


def paged_attention(
    query: Tensor, kv_cache: Tensor, plan: AttentionPlan, window: int | None
) -> Tensor:
    """Attend each query over its sequence's keys up to its own position.

    query [T, h, g, d] may be strided; kv_cache as in `store_kv`, with the step's own tokens in it;
    window: positions seen, counted back from the query's own; None: all.
    Returns [T, h * g * d]. It may be overwritten by the next call with the same plan.
    Blocks and slots that belong to no sequence may hold anything.
    """
    if isinstance(plan, CpuAttentionPlan):
        return cpu_attention.paged_attention(query, kv_cache, plan, window)
    return reference.paged_attention(query, kv_cache, plan, window)
