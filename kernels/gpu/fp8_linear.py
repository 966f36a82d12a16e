"""The product with a matrix of float8_e4m3fn, scaled in groups of inputs (w8a16).

Weights are read as bytes and widened by shifts, since only GPUs from sm_89 on know float8. Each
group's product is scaled as a whole in float32. Programs share the work as in
kernels/gpu/linear_launch.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.linear_launch import launch_product, store_product
from kernels.weights import LinearWeight, Packing

WIDENED = tl.constexpr(256.0)
"""What `_widen` divides by: the exponents of float16 are biased by 15, those of e4m3 by 7."""


@triton.jit
def _widen(octets):
    """Return e4m3 numbers, given as uint8, divided by 256, as float16: exact but for NaN.

    Sign, exponent and fraction move to their places in a float16; numbers below its least
    exponent are as float16 writes them too.
    """
    wide = octets.to(tl.uint16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return bits.to(tl.uint16).to(tl.float16, bitcast=True)


# One kernel for any number of tokens: another one would be compiled while requests wait.
@triton.jit(do_not_specialize=["num_tokens", "num_steps", "steps_per_split"])
def _fp8_linear_kernel(
    x,
    weight,
    scales,
    bias,
    output,
    num_tokens,
    num_outputs,
    num_inputs,
    s_x,
    s_weight,
    num_steps,
    steps_per_split,
    GROUP_SIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    split = tl.program_id(2)
    is_output, is_token = n < num_outputs, t < num_tokens
    rows = weight + n[:, None].to(tl.int64) * s_weight
    tokens = x + t[:, None].to(tl.int64) * s_x

    steps_per_group: tl.constexpr = (GROUP_SIZE + BLOCK_K - 1) // BLOCK_K
    first = split * steps_per_split
    total = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for step in range(first, tl.minimum(first + steps_per_split, num_steps)):
        group = step // steps_per_group
        in_group = (step % steps_per_group) * BLOCK_K + tl.arange(0, BLOCK_K)
        k = group * GROUP_SIZE + in_group
        is_weight, is_x = is_output[:, None], is_token[:, None]
        if IS_RAGGED:
            is_input = ((in_group < GROUP_SIZE) & (k < num_inputs))[None, :]
            is_weight, is_x = is_weight & is_input, is_x & is_input
        octets = tl.load(rows + k[None, :], mask=is_weight, other=0)  # [BLOCK_N, BLOCK_K]
        own_x = tl.load(tokens + k[None, :], mask=is_x, other=0.0)  # [BLOCK_T, BLOCK_K]
        of_group = group * num_outputs + n
        scale = tl.load(scales + of_group, mask=is_output, other=0.0).to(tl.float32)[:, None]
        wide = _widen(octets).to(tl.float32).to(own_x.dtype)
        part = tl.dot(wide, tl.trans(own_x), input_precision=PRECISION)
        total += part * (scale * WIDENED)

    store_product(total, bias, output, n, t, split, num_tokens, num_outputs, HAS_BIAS)


def fp8_linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias: [T, in], rows of any stride -> [T, out].

    x         bf16, fp16 or fp32, and so is the result
    weight    of FP8 packing: bits of float8_e4m3fn [out, in] uint8, scales [groups, out] of any
              float dtype, bias [out] of the dtype of x
    """
    assert weight.packing is Packing.FP8
    return launch_product(_fp8_linear_kernel, x, weight, values_per_byte=1)
