"""The product of an activated gate with its other half: SiLU and both forms of GELU."""

from enum import IntEnum

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


class Activation(IntEnum):
    """What is done to the gate."""

    SILU = 0
    GELU = 1
    """x * Phi(x), with the error function"""
    GELU_TANH = 2
    """its approximation by a tanh, Hendrycks and Gimpel, arXiv 1606.08415"""


@triton.jit
def _logistic(x):
    # Below -87 it is nothing, and exp would overflow.
    return 1.0 / (1.0 + tl.exp(-tl.maximum(x, -87.0)))


@triton.jit
def _gated_activation_kernel(
    gate_up, output, row_stride, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    start = gate_up + row * row_stride
    stored = tl.load(start + columns, mask=mask, other=0.0)
    gate = stored.to(tl.float32)
    up = tl.load(start + width + columns, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == 0:
        activated = gate * _logistic(gate)
    elif ACTIVATION == 1:
        activated = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        # 0.5 * (1 + tanh(y)) is the logistic function of 2 * y.
        activated = gate * _logistic(2.0 * inner)
    tl.store(output + row * width + columns, (activated * up).to(stored.dtype), mask=mask)


def gated_activation(gate_up: Tensor, activation: Activation) -> Tensor:
    """Return activation(gate) * up: [T, 2 * ffn], gate first -> [T, ffn]."""
    num_rows, both = gate_up.shape
    assert gate_up.stride(1) == 1
    width = both // 2
    output = torch.empty((num_rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if num_rows:
        _gated_activation_kernel[(num_rows, triton.cdiv(width, _BLOCK))](
            gate_up,
            output,
            gate_up.stride(0),
            width,
            ACTIVATION=int(activation),
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return output


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up: [T, 2 * ffn], gate first -> [T, ffn]."""
    return gated_activation(gate_up, Activation.SILU)
