"""The product with a matrix of 4-bit integers, scaled in groups of inputs (w4a16).

Each group's product is taken with the integers, which every float dtype holds exactly, and scaled
as a whole in float32: more exact than scaling the weights, and less to do. One program has a tile
of outputs and tokens and a range of the inputs; where these are split, kernels/gpu/sum_splits.py
adds up, so results do not depend on who comes first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention_block import precision_of
from kernels.gpu.linear_tiles import linear_grid, linear_tile
from kernels.gpu.sum_splits import sum_splits
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

    result = tl.trans(total)  # [BLOCK_T, BLOCK_N]
    if HAS_BIAS:
        result += tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)[None, :]
    row = split.to(tl.int64) * num_tokens + t
    place = output + row[:, None] * num_outputs + n[None, :]
    mask = is_token[:, None] & is_output[None, :]
    tl.store(place, result.to(output.dtype.element_ty), mask=mask)


def int4_linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias: [T, in], rows of any stride -> [T, out].

    x         bf16, fp16 or fp32, and so is the result
    weight    of INT4 packing: values [out, groups * ceil(size / 2)] uint8, scales [groups, out] of
              any float dtype, zeros [groups, out] uint8, bias [out] of the dtype of x
    """
    groups = weight.groups
    assert weight.packing is Packing.INT4
    assert groups is not None
    assert groups.zeros is not None
    if groups.input_order is not None:
        x = x[:, groups.input_order]
    num_tokens, num_inputs = x.shape
    num_outputs = len(weight.weight)
    assert x.stride(1) == 1
    assert num_inputs == weight.num_inputs
    if not num_tokens:
        return x.new_empty(0, num_outputs)
    half = (groups.size + 1) // 2
    tile = linear_tile(num_tokens, half, x.dtype)
    grid = linear_grid(num_outputs, num_tokens, len(groups.scales), half, tile)
    num_splits = grid.shape[2]
    is_split = num_splits > 1
    output = torch.empty(
        (num_splits, num_tokens, num_outputs),
        dtype=torch.float32 if is_split else x.dtype,
        device=x.device,
    )
    _int4_linear_kernel[grid.shape](
        x,
        weight.weight,
        groups.scales,
        groups.zeros,
        output if weight.bias is None else weight.bias,
        output,
        num_tokens,
        num_outputs,
        num_inputs,
        x.stride(0),
        weight.weight.stride(0),
        grid.num_steps,
        grid.steps_per_split,
        GROUP_SIZE=groups.size,
        HAS_BIAS=weight.bias is not None and not is_split,
        IS_RAGGED=groups.size % (2 * tile.block_k) != 0 or num_inputs % groups.size != 0,
        PRECISION=precision_of(x.dtype),
        BLOCK_N=tile.block_n,
        BLOCK_T=tile.block_t,
        BLOCK_K=tile.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return sum_splits(output, weight.bias, x.dtype) if is_split else output[0]
