"""Matrix products on CPU over weights packed once into oneDNN's blocked layout.

Measured on two AVX2 cores with SmolLM2's matrices streamed from memory (float32): packed takes
20 ms against 30 at batch 1, 26 against 59 at batch 4, 41 against 63 at batch 16, 117 against 139
at batch 64, and is level at 256. The operations are torch's own, made for its compiler's freezing
and not public, so they are tried once before any weight is packed.
"""

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor

from kernels.weights import LinearWeight, Packing

_PROBE_TOLERANCE = 0.05  # of the result's size; bfloat16 keeps 8 bits


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of `dtype` here and multiplies by them rightly."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator).to(dtype)
    x = torch.randn(3, 32, generator=generator).to(dtype)
    try:
        packed = linear(x, pack(weight, None))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False  # the operations are gone, or refuse this dtype on this processor
    expected = F.linear(x, weight).float()
    return bool((packed.float() - expected).abs().max() <= _PROBE_TOLERANCE * expected.abs().max())


def pack(weight: Tensor, bias: Tensor | None) -> LinearWeight:
    """Pack a weight [out_features, in_features]; the packed copy replaces it."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    num_outputs, num_inputs = weight.shape
    return LinearWeight(packed, bias, num_inputs, num_outputs, Packing.ONEDNN)


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias."""
    if weight.packing is Packing.NONE:
        return F.linear(x, weight.weight, weight.bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(
        x, weight.weight, weight.bias, "none", [], ""
    )
    return product
