"""What the products with quantised matrices share: how they are launched and end.

One program has a tile of outputs and tokens and a range of the inputs; where these are split,
kernels/gpu/sum_splits.py adds up, so results do not depend on who comes first.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention_block import precision_of
from kernels.gpu.linear_tiles import linear_grid, linear_tile
from kernels.gpu.sum_splits import sum_splits
from kernels.weights import LinearWeight


def launch_product(kernel: Any, x: Tensor, weight: LinearWeight, values_per_byte: int) -> Tensor:
    """Return x @ weight.T + bias: [T, in], rows of any stride -> [T, out].

    kernel           has zeros after the scales where the weight has any
    values_per_byte  of the weight as it lies in memory
    """
    groups = weight.groups
    assert groups is not None
    of_groups = [groups.scales] if groups.zeros is None else [groups.scales, groups.zeros]
    if groups.input_order is not None:
        x = x[:, groups.input_order]
    num_tokens, num_inputs = x.shape
    num_outputs = len(weight.weight)
    assert x.stride(1) == 1
    assert num_inputs == weight.num_inputs
    if not num_tokens:
        return x.new_empty(0, num_outputs)
    columns = triton.cdiv(groups.size, values_per_byte)
    tile = linear_tile(num_tokens, columns, x.dtype)
    grid = linear_grid(num_outputs, num_tokens, len(groups.scales), columns, tile)
    num_splits = grid.shape[2]
    is_split = num_splits > 1
    output = torch.empty(
        (num_splits, num_tokens, num_outputs),
        dtype=torch.float32 if is_split else x.dtype,
        device=x.device,
    )
    step_inputs = values_per_byte * tile.block_k
    kernel[grid.shape](
        x,
        weight.weight,
        *of_groups,
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
        IS_RAGGED=groups.size % step_inputs != 0 or num_inputs % groups.size != 0,
        PRECISION=precision_of(x.dtype),
        BLOCK_N=tile.block_n,
        BLOCK_T=tile.block_t,
        BLOCK_K=tile.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return sum_splits(output, weight.bias, x.dtype) if is_split else output[0]


@triton.jit
def store_product(
    total, bias, output, n, t, split, num_tokens, num_outputs, HAS_BIAS: tl.constexpr
):
    """Write a program's sums [outputs n, tokens t], and the bias where it is not added later."""
    is_output, is_token = n < num_outputs, t < num_tokens
    result = tl.trans(total)  # tokens first, as the output lies
    if HAS_BIAS:
        result += tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)[None, :]
    row = split.to(tl.int64) * num_tokens + t
    place = output + row[:, None] * num_outputs + n[None, :]
    mask = is_token[:, None] & is_output[None, :]
    tl.store(place, result.to(output.dtype.element_ty), mask=mask)
