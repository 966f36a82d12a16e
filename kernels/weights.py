"""Weights in the form their operation wants, made once at load by `kernels.ops`."""

from ctypes import Structure
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
    INT8_PANELS = auto()
    """the same, rounded to int8 with a scale for each output, see kernels/native/quantized.cpp"""
    INT4 = auto()
    """4-bit integers in groups of inputs, see kernels/quantized_linear.py"""
    FP8 = auto()
    """float8_e4m3fn in groups of inputs, likewise"""

    @property
    def is_native(self) -> bool:
        """Whether it is for our compiled kernels."""
        return self in (Packing.PANELS, Packing.INT8_PANELS)

    @property
    def is_grouped(self) -> bool:
        """Whether its values are scaled group by group of inputs."""
        return self in (Packing.INT4, Packing.FP8)


@dataclass(frozen=True, slots=True)
class WeightGroups:
    """How the values of an INT4 or FP8 matrix are to be read.

    A weight is its value, less its zero where there is one, times its scale.
    """

    size: int
    """Inputs of each group; the last one may have fewer."""
    scales: Tensor
    """[groups, out] of any float dtype"""
    zeros: Tensor | None
    """[groups, out] uint8, of INT4 alone"""
    input_order: Tensor | None
    """[in] int64: which input each column of the weight is for; None: its own"""

    @property
    def tensors(self) -> list[Tensor]:
        """All that it keeps."""
        kept = (self.scales, self.zeros, self.input_order)
        return [tensor for tensor in kept if tensor is not None]


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A matrix [num_outputs, num_inputs] and its bias [num_outputs].

    Packed, both are opaque: for the operations alone.
    """

    weight: Tensor
    bias: Tensor | None
    num_inputs: int
    num_outputs: int
    packing: Packing
    is_gated: bool = False
    """Two matrices, gate and up, that give [num_outputs] together; see `ops.gated_linear`."""
    scales: Tensor | None = None
    """Of int8: float32, one for each output"""
    groups: WeightGroups | None = None
    """Of INT4 and FP8."""

    @property
    def tensors(self) -> list[Tensor]:
        """All that it keeps."""
        kept = (self.weight, self.bias, self.scales)
        of_groups = [] if self.groups is None else self.groups.tensors
        return [tensor for tensor in kept if tensor is not None] + of_groups


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

    @property
    def tensors(self) -> list[Tensor]:
        """All that it keeps."""
        return [self.weight, self.scaled, self.floor]


@dataclass(frozen=True, slots=True)
class SelfAttentionWeights:
    """What `ops.self_attention` needs; `ops.self_attention_weights` makes it."""

    norm: NormWeight
    qkv: LinearWeight
    """Outputs by KV head: its query heads, its key, its value, each of head_dim."""
    qk_norm: NormWeight | None
    """Gain [group_size + 1, head_dim]: each query head's, then the key's."""
    output: LinearWeight
    window: int | None
    """Positions seen, counted back from the query's own; None: all."""
    native: Structure | None
    """The same for the compiled kernels, where they can do all of it."""

    @property
    def tensors(self) -> list[Tensor]:
        """All that it keeps."""
        qk_norm = [] if self.qk_norm is None else self.qk_norm.tensors
        return [*self.norm.tensors, *self.qkv.tensors, *qk_norm, *self.output.tensors]


@dataclass(frozen=True, slots=True)
class FeedForwardWeights:
    """What `ops.feed_forward` needs; `ops.feed_forward_weights` makes it."""

    norm: NormWeight
    gate_up: LinearWeight
    """Gated."""
    down: LinearWeight
    native: Structure | None
    """The same for the compiled kernels, where they can do all of it."""

    @property
    def tensors(self) -> list[Tensor]:
        """All that it keeps."""
        return [*self.norm.tensors, *self.gate_up.tensors, *self.down.tensors]
