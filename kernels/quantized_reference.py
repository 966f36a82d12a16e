"""Products with quantised matrices in plain torch, on any device: the oracle of the fast paths.

The same signatures as in `kernels.gpu`. Weights are widened to float32 whole, and so are inputs
and sums: exact but for the order of the sums and the rounding of the result.
"""

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor

from kernels.weights import LinearWeight, Packing, WeightGroups


def int4_linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias: [T, in] of any float dtype -> [T, out] of the same."""
    assert weight.packing is Packing.INT4
    return _linear(x, weight)


def fp8_linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias: [T, in] of any float dtype -> [T, out] of the same."""
    assert weight.packing is Packing.FP8
    return _linear(x, weight)


def dequantize(weight: LinearWeight) -> Tensor:
    """Return the weights [out, in] of an INT4 or FP8 packing, in float32."""
    groups = weight.groups
    assert groups is not None
    if weight.packing is Packing.FP8:
        values = weight.weight.view(torch.float8_e4m3fn).float()
    else:
        values = _split_bytes(weight, groups.size).float()
    group_of_input = torch.arange(weight.num_inputs, device=values.device) // groups.size
    if groups.zeros is not None:
        values -= groups.zeros.T.float()[:, group_of_input]
    values *= groups.scales.T.float()[:, group_of_input]
    return _restore_order(values, groups)


def _linear(x: Tensor, weight: LinearWeight) -> Tensor:
    bias = None if weight.bias is None else weight.bias.float()
    return F.linear(x.float(), dequantize(weight), bias).to(x.dtype)


def _split_bytes(weight: LinearWeight, size: int) -> Tensor:
    """Return one value of 4 bits an element: [out, in] uint8, in the order of groups."""
    half = -(-size // 2)
    packed = weight.weight.unflatten(1, (-1, half))
    both = torch.cat((packed & 15, packed >> 4), dim=2)
    return both[:, :, :size].flatten(1)[:, : weight.num_inputs]


def _restore_order(values: Tensor, groups: WeightGroups) -> Tensor:
    if groups.input_order is None:
        return values
    restored = torch.empty_like(values)
    restored[:, groups.input_order] = values
    return restored
