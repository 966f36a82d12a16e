"""Products with matrices that stay quantised in memory: 4-bit integers and float8.

Weights are read as they are stored and widened in registers; inputs keep their dtype. On CUDA by
our Triton kernels, elsewhere, slowly, by `kernels.quantized_reference`.
"""

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor

from kernels import gpu_library, quantized_reference
from kernels.quantized_matrix import QuantizedMatrix, StoredAs
from kernels.weights import LinearWeight, Packing, WeightGroups


def pack(matrix: QuantizedMatrix, bias: Tensor | None, dtype: torch.dtype) -> LinearWeight:
    """Pack a quantised matrix [out, in] and its bias for inputs of `dtype`.

    INT4: two values a byte, [out, groups * ceil(size / 2)]: byte i of a group holds value i of its
    first half below and value i of its second half above, so that both halves of a byte meet
    neighbouring inputs as their neighbours do. FP8: [out, in], bits of float8_e4m3fn.

    The matrix must have a `group_size`.
    """
    size, order = matrix.group_size, matrix.input_order
    assert size is not None, "the loader takes whole groups"
    values = matrix.values if order is None else matrix.values[:, order]
    is_int4 = matrix.stored_as is StoredAs.INT4
    num_outputs, num_inputs = values.shape
    groups = WeightGroups(
        size=size,
        scales=matrix.scales.T.contiguous(),
        zeros=None if matrix.zeros is None else matrix.zeros.T.contiguous(),
        input_order=order,
    )
    return LinearWeight(
        weight=_pair_halves(values, size) if is_int4 else values.contiguous(),
        bias=None if bias is None else bias.to(dtype),
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        packing=Packing.INT4 if is_int4 else Packing.FP8,
        groups=groups,
    )


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias: [T, in] -> [T, out]; sums in float32."""
    gpu = gpu_library.gpu_operations() if x.device.type == "cuda" else None
    source = quantized_reference if gpu is None else gpu
    is_int4 = weight.packing is Packing.INT4
    product: Tensor = (source.int4_linear if is_int4 else source.fp8_linear)(x, weight)
    return product


def _pair_halves(values: Tensor, size: int) -> Tensor:
    """Put two values of [out, in] into each byte, see `pack`."""
    num_groups = -(-values.shape[1] // size)
    half = -(-size // 2)
    groups = F.pad(values, (0, num_groups * size - values.shape[1])).view(-1, num_groups, size)
    halves = F.pad(groups, (0, 2 * half - size))
    return (halves[:, :, :half] | halves[:, :, half:] << 4).flatten(1)
