"""Norms, activations and rotation on CPU, with as few passes and dispatches as torch allows."""

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor

from kernels.weights import NormWeight


def rms_norm(x: Tensor, norm: NormWeight) -> Tensor:
    """Norm by x / hypot(|x|, floor) * scaled: four operations, where the formula takes seven."""
    if x.dtype != torch.float32:
        return rms_norm(x.float(), norm).to(x.dtype)
    return torch.div(x, _length(x, norm)).mul_(norm.scaled)


def rms_norm_(x: Tensor, norm: NormWeight) -> Tensor:
    """Norm `x` in place; it may be strided."""
    if x.dtype != torch.float32:
        return x.copy_(rms_norm(x, norm))
    return x.div_(_length(x, norm)).mul_(norm.scaled)


def _length(x: Tensor, norm: NormWeight) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.hypot(length, norm.floor, out=length)


def add_rms_norm(x: Tensor, residual: Tensor, norm: NormWeight) -> Tensor:
    """Add `x` to `residual` in place and return the norm of the sum."""
    return rms_norm(residual.add_(x), norm)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return silu(left half) * right half."""
    width = gate_up.shape[-1] // 2
    return F.silu(gate_up.narrow(-1, 0, width)).mul_(gate_up.narrow(-1, width, width))


def rotary_(heads: Tensor, rotation: Tensor) -> Tensor:
    """Rotate in place: a pair is a complex number, and the rotation one multiplication."""
    if heads.dtype != torch.float32:
        return heads.copy_(rotary_(heads.float(), rotation))
    heads.view(torch.complex64).mul_(rotation)
    return heads
