"""Norms and activation in float32 on CPU by our compiled kernels."""

from ctypes import byref

import torch
from torch import Tensor

from kernels.native_library import native_library
from kernels.native_structs import Norm
from kernels.weights import NormWeight


def rms_norm(x: Tensor, norm: NormWeight) -> Tensor:
    """Return the RMS norm of `x`."""
    y = torch.empty_like(x)
    library, gain = native_library(), byref(Norm.of(norm))
    library.add_rms_norm(None, x.data_ptr(), gain, y.data_ptr(), *x.shape)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, norm: NormWeight) -> Tensor:
    """Add `x` to `residual` in place and return the norm of the sum."""
    y = torch.empty_like(residual)
    library, gain = native_library(), byref(Norm.of(norm))
    library.add_rms_norm(x.data_ptr(), residual.data_ptr(), gain, y.data_ptr(), *residual.shape)
    return y


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return silu(left half) * right half."""
    num_rows, width = gate_up.shape
    y = gate_up.new_empty(num_rows, width // 2)
    native_library().silu_and_mul(gate_up.data_ptr(), y.data_ptr(), num_rows, width // 2)
    return y
