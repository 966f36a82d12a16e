"""Matrix products in float32 on CPU by our compiled kernels; see kernels/native/linear.cpp.

Measured on two AVX2 cores with SmolLM2's matrices (`python -m tests.benchmarks.linear`), against
oneDNN's packed ones, milliseconds for all of them: 20 against 40 at batch 1, 50 against 74 at 16,
132 against 161 at 64, 947 against 1035 at 512.
"""

from ctypes import byref

import torch
from torch import Tensor

from kernels.huge_pages import prefer_huge_pages
from kernels.native_library import can_run, native_library
from kernels.native_structs import Matrix
from kernels.weights import LinearWeight, Packing


def can_pack(dtype: torch.dtype) -> bool:
    """Whether `linear` can be had for inputs of `dtype`."""
    return can_run(0, dtype)


def pack(weight: Tensor, bias: Tensor | None, packing: Packing) -> LinearWeight:
    """Pack a matrix [out, in] of any float dtype; the packed copy replaces the original.

    PANELS keep bfloat16 and widen others: it is the upper half of a float32, so it multiplies
    exactly as if it had been widened before, and takes half the memory.
    """
    panel = 2 * native_library().num_lanes()
    bias = None if bias is None else _pad(bias.float(), panel)
    num_outputs, num_inputs = weight.shape
    return _pack_panels(_pad(weight, panel), bias, num_inputs, num_outputs, packing, is_gated=False)


def pack_gated(weight: Tensor, bias: Tensor | None, packing: Packing) -> LinearWeight:
    """Pack [gates + ups, in]: in each panel as many gates, and the ups that go with them."""
    bias = None if bias is None else _pair_gates(bias.float())
    num_outputs, num_inputs = len(weight) // 2, weight.shape[1]
    return _pack_panels(_pair_gates(weight), bias, num_inputs, num_outputs, packing, is_gated=True)


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias, activated where the weight is gated.

    A row's result does not depend on the rows beside it.
    """
    x = x.contiguous()
    y = x.new_empty(len(x), weight.num_outputs)
    library, matrix = native_library(), byref(Matrix.of(weight))
    library.linear(x.data_ptr(), matrix, y.data_ptr(), len(x))
    return y


def _pack_panels(
    rows: Tensor,
    bias: Tensor | None,
    num_inputs: int,
    num_outputs: int,
    packing: Packing,
    *,
    is_gated: bool,
) -> LinearWeight:
    """Lay out [panels * 2 * lanes, in] as kernels/native reads it."""
    scales = None
    if packing is Packing.INT8_PANELS:
        rows, scales = _quantize(rows)
        # As many inputs as the kernel has when it has filled its vectors.
        rows = _pad(rows.T, native_library().num_lanes()).T
    elif rows.dtype != torch.bfloat16:
        rows = rows.float()
    # [panels, low or high half, lanes, in]
    halves = rows.unflatten(0, (-1, 2, native_library().num_lanes()))
    if packing is Packing.INT8_PANELS:
        ordered = halves.unflatten(3, (-1, 2)).permute(0, 3, 1, 2, 4)
    elif rows.dtype == torch.bfloat16:  # pairs the halves within each lane
        ordered = halves.permute(0, 3, 2, 1)
    else:
        ordered = halves.permute(0, 3, 1, 2)
    panels = prefer_huge_pages(torch.empty(ordered.shape, dtype=rows.dtype)).copy_(ordered)
    return LinearWeight(panels, bias, num_inputs, num_outputs, packing, is_gated, scales)


def _quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows [out, in] to int8 multiples of a scale [out] each, the largest to 127 of it."""
    rows = rows.float()
    scales = rows.abs().amax(1) / 127
    rounded = (rows / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_()
    return rounded.to(torch.int8), scales


def _pair_gates(rows: Tensor) -> Tensor:
    """Reorder [gates + ups, ...] to [panels * (lanes gates + lanes ups), ...]."""
    lanes = native_library().num_lanes()
    halves = [_pad(half, lanes).unflatten(0, (-1, lanes)) for half in rows.chunk(2)]
    return torch.stack(halves, dim=1).flatten(0, 2)


def _pad(rows: Tensor, multiple: int) -> Tensor:
    """Append zeros up to a multiple of so many rows."""
    padding = rows.new_zeros(-len(rows) % multiple, *rows.shape[1:])
    return torch.cat((rows, padding))
