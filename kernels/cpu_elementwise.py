"""Norms, activations and rotation on CPU, with as few passes and dispatches as torch allows."""

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor

from kernels.weights import NormWeight


def rms_norm(x: Tensor, norm: NormWeight) -> Tensor:
    """Norm by x / hypot(|x|, floor) * scaled: four operations, where the formula takes seven."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    torch.hypot(length, norm.floor, out=length)
    return torch.div(wide, length).mul_(norm.scaled).to(x.dtype)


def rms_norm_(x: Tensor, norm: NormWeight) -> Tensor:
    """Norm `x` in place; it may be strided."""
    if x.dtype != torch.float32:
        return x.copy_(rms_norm(x, norm))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    torch.hypot(length, norm.floor, out=length)
    return x.div_(length).mul_(norm.scaled)


def add_rms_norm(x: Tensor, residual: Tensor, norm: NormWeight) -> Tensor:
    """Add `x` to `residual` in place and return the norm of the sum."""
    return rms_norm(residual.add_(x), norm)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return silu(left half) * right half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def rotary_(heads: Tensor, rotation: Tensor) -> Tensor:
    """Rotate in place: a pair is a complex number, and the rotation one multiplication."""
    wide = heads.float()  # itself when it is float32 already
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    pairs.mul_(rotation[:, None, None])
    return heads if wide is heads else heads.copy_(wide)
