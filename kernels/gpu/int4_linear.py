"""The product with a matrix of 4-bit integers, scaled in groups of inputs (w4a16).

Each group's product is taken with the integers, which every float dtype holds exactly, and scaled
as a whole in float32: more exact than scaling the weights, and less to do. Programs share the work
as in kernels/gpu/linear_launch.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.linear_launch import launch_product, store_product
from kernels.weights import LinearWeight, Packing


# One kernel for any number of tokens: another one would be compiled while requests wait.
@triton.jit(do_not_specialize=["num_tokens", "num_steps", "steps_per_split"])
def _int4_linear_kernel(
    x,
    weight,
    scales,
    zeros,
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

    half: tl.constexpr = (GROUP_SIZE + 1) // 2
    steps_per_group: tl.constexpr = (half + BLOCK_K - 1) // BLOCK_K
    first = split * steps_per_split
    total = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for step in range(first, tl.minimum(first + steps_per_split, num_steps)):
        group = step // steps_per_group
        k = (step % steps_per_group) * BLOCK_K + tl.arange(0, BLOCK_K)
        low_input = group * GROUP_SIZE + k
        high_input = low_input + half
        is_weight = is_output[:, None]
        is_low, is_high = is_token[:, None], is_token[:, None]
        if IS_RAGGED:
            is_weight = is_weight & (k < half)[None, :]
            is_low = is_low & ((k < half) & (low_input < num_inputs))[None, :]
            is_high = is_high & ((k + half < GROUP_SIZE) & (high_input < num_inputs))[None, :]
        # Two inputs a byte, see kernels/quantized_linear.py: [BLOCK_N, BLOCK_K]
        packed = tl.load(rows + (group * half + k)[None, :], mask=is_weight, other=0)
        low_x = tl.load(tokens + low_input[None, :], mask=is_low, other=0.0)  # [BLOCK_T, BLOCK_K]
        high_x = tl.load(tokens + high_input[None, :], mask=is_high, other=0.0)
        of_group = group * num_outputs + n
        zero = tl.load(zeros + of_group, mask=is_output, other=0).to(tl.float32)[:, None]
        scale = tl.load(scales + of_group, mask=is_output, other=0.0).to(tl.float32)[:, None]
        low = ((packed & 15).to(tl.float32) - zero).to(low_x.dtype)
        high = ((packed >> 4).to(tl.float32) - zero).to(low_x.dtype)
        part = tl.dot(low, tl.trans(low_x), input_precision=PRECISION)
        part = tl.dot(high, tl.trans(high_x), acc=part, input_precision=PRECISION)
        total += part * scale

    store_product(total, bias, output, n, t, split, num_tokens, num_outputs, HAS_BIAS)


def int4_linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias: [T, in], rows of any stride -> [T, out].

    x         bf16, fp16 or fp32, and so is the result
    weight    of INT4 packing: values [out, groups * ceil(size / 2)] uint8, scales [groups, out] of
              any float dtype, zeros [groups, out] uint8, bias [out] of the dtype of x
    """
    assert weight.packing is Packing.INT4
    return launch_product(_int4_linear_kernel, x, weight, values_per_byte=2)
