"""Weights in the form their operation wants, made once at load by `kernels.ops`."""

from dataclasses import dataclass
from enum import Enum, auto

from torch import Tensor


class Packing(Enum):
    """How a matrix lies in memory."""

    NONE = auto()
    """[out_features, in_features], as in the checkpoint"""
    ONEDNN = auto()
    """oneDNN's own blocked layout, see kernels/cpu_linear.py"""
    PANELS = auto()
    """panels of our compiled kernels, see kernels/native/linear.cpp"""


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A matrix [num_outputs, in_features] and its bias [num_outputs].

    Packed, both are opaque: for `ops.linear` alone.
    """

    weight: Tensor
    bias: Tensor | None
    num_outputs: int
    packing: Packing


@dataclass(frozen=True, slots=True)
class NormWeight:
    """The gain of an RMS norm over the last dimension.

    `weight` is [dim], or [..., dim] broadcast against the input. The two other tensors save
    torch's CPU path half of its operations: x / hypot(|x|, floor) * scaled is the same as
    x / rms(x) * weight.
    """

    weight: Tensor
    eps: float
    scaled: Tensor
    """weight * sqrt(dim), float32."""
    floor: Tensor
    """sqrt(eps * dim), a float32 scalar."""
