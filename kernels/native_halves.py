"""The halves of a decoder layer in float32 on CPU, one call each; see kernels/native/halves.cpp."""

from ctypes import byref

import torch
from torch import Tensor

from kernels.native_attention import NativePlan
from kernels.native_library import can_run, native_library
from kernels.native_structs import FeedForward, Matrix, Norm, SelfAttention
from kernels.weights import (
    FeedForwardWeights,
    LinearWeight,
    NormWeight,
    SelfAttentionWeights,
)


def find_self_attention(
    norm: NormWeight,
    qkv: LinearWeight,
    qk_norm: NormWeight | None,
    output: LinearWeight,
    window: int | None,
) -> SelfAttention | None:
    """Point to the weights; None where the kernels cannot do all of it."""
    if not _can_chain(norm, qkv, output):
        return None
    return SelfAttention(
        Norm.of(norm), Matrix.of(qkv), Norm.of(qk_norm), Matrix.of(output), window or 0
    )


def find_feed_forward(
    norm: NormWeight, gate_up: LinearWeight, down: LinearWeight
) -> FeedForward | None:
    """Point to the weights; None where the kernels cannot do all of it."""
    if not _can_chain(norm, gate_up, down):
        return None
    return FeedForward(Norm.of(norm), Matrix.of(gate_up), Matrix.of(down))


def _can_chain(norm: NormWeight, *matrices: LinearWeight) -> bool:
    is_packed = all(matrix.packing.is_native for matrix in matrices)
    return is_packed and can_run(len(norm.weight), norm.weight.dtype)


def self_attention(
    x: Tensor | None,
    residual: Tensor,
    weights: SelfAttentionWeights,
    rotation: Tensor,
    kv_cache: Tensor,
    plan: NativePlan,
    rows: Tensor | None,
) -> Tensor:
    """Add, norm, project, attend and project back."""
    assert weights.native is not None
    num_rows = len(residual) if rows is None else len(rows)
    wanted = None if rows is None else rows.long()
    y = torch.empty(num_rows, weights.output.num_outputs)
    native_library().self_attention(
        byref(weights.native),
        byref(plan.step),
        None if x is None else x.data_ptr(),
        residual.data_ptr(),
        rotation.data_ptr(),
        kv_cache.data_ptr(),
        None if wanted is None else wanted.data_ptr(),
        num_rows,
        y.data_ptr(),
    )
    return y


def feed_forward(x: Tensor, residual: Tensor, weights: FeedForwardWeights) -> Tensor:
    """Add, norm, widen, activate and project back."""
    assert weights.native is not None
    y = torch.empty(len(residual), weights.down.num_outputs)
    native_library().feed_forward(
        byref(weights.native), x.data_ptr(), residual.data_ptr(), y.data_ptr(), len(residual)
    )
    return y
