"""The structs of kernels/native/operations.h, made from what the operations get in Python.

They hold addresses: whoever keeps one keeps the tensors too.
"""

import ctypes

import torch

from kernels.layout import AttentionGeometry
from kernels.weights import LinearWeight, NormWeight

_POINTER, _COUNT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class Matrix(ctypes.Structure):
    """A packed matrix."""

    _fields_ = (
        ("panels", _POINTER),
        ("bias", _POINTER),
        ("scales", _POINTER),
        ("num_inputs", _COUNT),
        ("num_outputs", _COUNT),
        ("element", _COUNT),
        ("is_gated", _COUNT),
    )

    @classmethod
    def of(cls, weight: LinearWeight) -> "Matrix":
        """Point to a packed weight."""
        return cls(
            weight.weight.data_ptr(),
            None if weight.bias is None else weight.bias.data_ptr(),
            None if weight.scales is None else weight.scales.data_ptr(),
            weight.num_inputs,
            weight.num_outputs,
            _ELEMENTS[weight.weight.dtype],
            weight.is_gated,
        )


class Norm(ctypes.Structure):
    """An RMS norm, or none."""

    _fields_ = (("gain", _POINTER), ("eps", _REAL))

    @classmethod
    def of(cls, norm: NormWeight | None) -> "Norm":
        """Point to a norm's gain."""
        return cls() if norm is None else cls(norm.weight.data_ptr(), norm.eps)


class Step(ctypes.Structure):
    """Where the tokens of a step belong."""

    _fields_ = (
        ("query_start_loc", _POINTER),
        ("seq_lens", _POINTER),
        ("block_tables", _POINTER),
        ("slots", _POINTER),
        ("num_tokens", _COUNT),
        ("num_seqs", _COUNT),
        ("max_blocks", _COUNT),
        ("num_blocks", _COUNT),
        ("num_kv_heads", _COUNT),
        ("group_size", _COUNT),
        ("head_dim", _COUNT),
        ("block_size", _COUNT),
        ("scale", _REAL),
    )

    @classmethod
    def of(
        cls,
        geometry: AttentionGeometry,
        query_start_loc: torch.Tensor,
        seq_lens: torch.Tensor,
        block_tables: torch.Tensor,
        slots: torch.Tensor,
    ) -> "Step":
        """Point to a step's layout: int32 tensors, contiguous."""
        return cls(
            query_start_loc.data_ptr(),
            seq_lens.data_ptr(),
            block_tables.data_ptr(),
            slots.data_ptr(),
            len(slots),
            *block_tables.shape,
            geometry.num_blocks,
            geometry.num_kv_heads,
            geometry.group_size,
            geometry.head_dim,
            geometry.block_size,
            geometry.scale,
        )


class SelfAttention(ctypes.Structure):
    """Weights of a layer's first half."""

    _fields_ = (
        ("norm", Norm),
        ("qkv", Matrix),
        ("qk_norm", Norm),
        ("output", Matrix),
        ("window", _COUNT),
    )


class FeedForward(ctypes.Structure):
    """Weights of a layer's second half."""

    _fields_ = (("norm", Norm), ("gate_up", Matrix), ("down", Matrix))
