"""RMS norm, alone or of the sum with the residual. One program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.weights import NormWeight


@triton.jit
def _rms_norm_kernel(
    x,
    residual,
    weight,
    output,
    x_stride,
    residual_stride,
    dim,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < dim
    value = tl.load(x + row * x_stride + columns, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        place = residual + row * residual_stride + columns
        total = value.to(tl.float32) + tl.load(place, mask=mask, other=0.0).to(tl.float32)
        # Rounded before it is normed, as the next layer will read it.
        value = total.to(value.dtype)
        tl.store(place, value, mask=mask)
    wide = value.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / dim + eps)
    gain = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    normed = (wide * factor * gain).to(value.dtype)
    tl.store(output + row * dim + columns, normed, mask=mask)


def rms_norm(x: Tensor, norm: NormWeight) -> Tensor:
    """Return the RMS norm of `x` [T, dim], rows of any stride."""
    return _launch(x, None, norm)


def add_rms_norm(x: Tensor, residual: Tensor, norm: NormWeight) -> Tensor:
    """Add `x` [T, dim] to `residual` [T, dim] in place; return the RMS norm of the sum."""
    return _launch(x, residual, norm)


def _launch(x: Tensor, residual: Tensor | None, norm: NormWeight) -> Tensor:
    num_rows, dim = x.shape
    assert x.stride(1) == 1
    output = torch.empty((num_rows, dim), dtype=x.dtype, device=x.device)
    if not num_rows:
        return output
    block = triton.next_power_of_2(dim)
    _rms_norm_kernel[(num_rows,)](
        x,
        x if residual is None else residual,
        norm.weight,
        output,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        dim,
        norm.eps,
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 8),
    )
    return output
