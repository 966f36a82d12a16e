"""Weights in the form their operation wants, made once at load by `kernels.ops`."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A matrix [out_features, in_features] and its bias [out_features].

    When `is_packed`, `weight` is oneDNN's own blocked layout: opaque, for `ops.linear` alone.
    """

    weight: Tensor
    bias: Tensor | None
    is_packed: bool


@dataclass(frozen=True, slots=True)
class NormWeight:
    """The gain of an RMS norm over the last dimension.

    `weight` is [dim], or [..., dim] broadcast against the input. The two other tensors save the
    CPU path half of its operations: x / hypot(|x|, floor) * scaled == x / rms(x) * weight.
    """

    weight: Tensor
    eps: float
    scaled: Tensor
    """weight * sqrt(dim), float32."""
    floor: Tensor
    """sqrt(eps * dim), a float32 scalar."""
