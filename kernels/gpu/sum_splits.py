"""The sum of what programs with different inputs gave of a product, in their order, and the bias.

One program a block of the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


# One kernel for any number of tokens: another one would be compiled while requests wait.
@triton.jit(do_not_specialize=["num_splits", "num_elements"])
def _sum_splits_kernel(
    parts,
    bias,
    output,
    num_splits,
    num_elements,
    num_outputs,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < num_elements
    total = tl.zeros([BLOCK], tl.float32)
    own = parts + place
    for _ in range(num_splits):
        total += tl.load(own, mask=mask, other=0.0)
        own += num_elements
    if HAS_BIAS:
        total += tl.load(bias + place % num_outputs, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + place, total.to(output.dtype.element_ty), mask=mask)


def sum_splits(parts: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return parts [splits, T, out] float32, summed, plus bias [out]: [T, out] of `dtype`."""
    num_splits, num_tokens, num_outputs = parts.shape
    output = torch.empty((num_tokens, num_outputs), dtype=dtype, device=parts.device)
    _sum_splits_kernel[(triton.cdiv(output.numel(), _BLOCK),)](
        parts,
        output if bias is None else bias,
        output,
        num_splits,
        output.numel(),
        num_outputs,
        HAS_BIAS=bias is not None,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return output
