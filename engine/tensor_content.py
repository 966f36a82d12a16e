"""What the tensors of a quantised linear layer hold, by their names; see `quantized_checkpoint`."""

from collections.abc import Container
from enum import Enum, auto
from typing import Final

import torch

from engine.quantization_config import AwqScheme, Fp8Scheme, GptqScheme, PackedScheme, Scheme


class TensorContent(Enum):
    """How a tensor is to be read."""

    INTEGERS = auto()
    """int32 words of eight 4-bit integers each"""
    FLOAT8 = auto()
    """float8_e4m3fn"""
    SCALES = auto()
    """of `scale_dtype`"""
    GROUPS = auto()
    """int32: the group of each input"""


_CONTENTS: Final = {
    "qweight": TensorContent.INTEGERS,
    "qzeros": TensorContent.INTEGERS,
    "scales": TensorContent.SCALES,
    "g_idx": TensorContent.GROUPS,
    "weight_packed": TensorContent.INTEGERS,
    "weight_zero_point": TensorContent.INTEGERS,
    "weight_scale": TensorContent.SCALES,
    "weight_scale_inv": TensorContent.SCALES,
    "weight_g_idx": TensorContent.GROUPS,
}


def content_of(name: str, scheme: Scheme, names: Container[str]) -> TensorContent | None:
    """Return what a tensor of a quantised checkpoint holds; None: floats that are not quantised.

    Args:
        name: of the tensor.
        scheme: how the checkpoint is quantised.
        names: of all tensors that are read. Only by its scale beside it is a weight known to be in
            float8: norms and spared layers have weights of the same name.
    """
    layer, _, kind = name.rpartition(".")
    if kind == "weight" and isinstance(scheme, Fp8Scheme):
        return TensorContent.FLOAT8 if f"{layer}.{scheme.scale_name}" in names else None
    return _CONTENTS.get(kind)


def scale_dtype(scheme: Scheme, dtype: torch.dtype) -> torch.dtype:
    """Return what scales are kept in; `dtype`: of the checkpoint."""
    match scheme:
        case AwqScheme() | GptqScheme():
            return torch.float16
        case PackedScheme():
            return dtype
        case Fp8Scheme():
            return torch.float32
