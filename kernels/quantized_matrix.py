"""A quantised matrix while it is loaded: cut, reordered and joined before it is packed.

Every published form of 4-bit integers and of float8 fits: a weight is what is stored, less a zero
where there is one, times the scale that its row has for the group its input belongs to. Scales of
whole tensors and of blocks are repeated for each row they cover, so that rows move freely.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import torch
from torch import Tensor

FP8_MAX = 448.0
"""Largest number of float8_e4m3fn; beyond it lies NaN."""


class StoredAs(Enum):
    """What the values of a matrix are."""

    INT4 = auto()
    """0 to 15"""
    FP8 = auto()
    """the bits of a float8_e4m3fn"""


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Weights [out, in], all tensors on one device."""

    stored_as: StoredAs
    values: Tensor
    """[out, in] uint8"""
    scales: Tensor
    """[out, groups] of any float dtype"""
    zeros: Tensor | None
    """[out, groups] uint8, of INT4 alone"""
    group_of_input: Tensor
    """[in] int64: the group of each input, every group used by one at least"""

    @property
    def input_order(self) -> Tensor | None:
        """Order [in] int64 of the inputs that brings groups together; None: they are."""
        groups = self.group_of_input
        if bool((groups[1:] >= groups[:-1]).all()):
            return None
        return groups.argsort(stable=True)

    @property
    def group_size(self) -> int | None:
        """Inputs of each group, the last of which may have fewer; None: groups differ."""
        groups, _ = self.group_of_input.sort()
        size = int((groups == 0).sum())
        expected = torch.arange(len(groups), device=groups.device) // size
        return size if torch.equal(groups, expected) else None

    def rows(self, index: Tensor) -> "QuantizedMatrix":
        """Take the outputs of `index` [n] int64, in its order."""
        return replace(
            self,
            values=self.values.index_select(0, index),
            scales=self.scales.index_select(0, index),
            zeros=None if self.zeros is None else self.zeros.index_select(0, index),
        )

    def columns(self, inputs: slice) -> "QuantizedMatrix":
        """Take a range of the inputs, with those groups alone that they belong to.

        A range that cuts groups leaves a matrix whose `group_size` may be None.
        """
        used, group_of_input = self.group_of_input[inputs].unique(return_inverse=True)
        return replace(
            self,
            values=self.values[:, inputs],
            scales=self.scales[:, used],
            zeros=None if self.zeros is None else self.zeros[:, used],
            group_of_input=group_of_input,
        )

    def dequantize(self) -> Tensor:
        """Return the weights [out, in] float32, contiguous."""
        is_fp8 = self.stored_as is StoredAs.FP8
        values = self.values.view(torch.float8_e4m3fn) if is_fp8 else self.values
        weights = values.to(torch.float32, memory_format=torch.contiguous_format)
        size, num_inputs = self.group_size, weights.shape[1]
        if size is not None and self.input_order is None and num_inputs % size == 0:
            # Far faster than to gather the scale of each input.
            weights = weights.view(len(weights), -1, size)
        if self.zeros is not None:
            weights -= self._spread(self.zeros, weights)
        return weights.mul_(self._spread(self.scales, weights)).flatten(1)

    def _spread(self, of_groups: Tensor, weights: Tensor) -> Tensor:
        """Spread [out, groups] over weights [out, in] or [out, groups, size]."""
        wide = of_groups.float()
        return wide[:, self.group_of_input] if weights.ndim == 2 else wide[:, :, None]


Matrix = Tensor | QuantizedMatrix


def concatenate(parts: Sequence[Matrix]) -> Matrix:
    """Join matrices [out, in] with the same inputs along their outputs.

    What is stored in different ways, or in groups of different inputs, is dequantised.
    """
    first = parts[0]
    like = [
        part
        for part in parts
        if isinstance(part, QuantizedMatrix)
        and isinstance(first, QuantizedMatrix)
        and _is_like(part, first)
    ]
    if len(like) == len(parts):
        zeros = [part.zeros for part in like if part.zeros is not None]
        return replace(
            like[0],
            values=torch.cat([part.values for part in like]),
            scales=torch.cat([part.scales for part in like]),
            zeros=torch.cat(zeros) if zeros else None,
        )
    plain = [part.dequantize() if isinstance(part, QuantizedMatrix) else part for part in parts]
    return torch.cat(plain)


def take_rows(matrix: Matrix, index: Tensor) -> Matrix:
    """Take the outputs of `index` [n] int64, in its order."""
    if isinstance(matrix, QuantizedMatrix):
        return matrix.rows(index)
    return matrix.index_select(0, index)


def round_to_fp8(weight: Tensor) -> QuantizedMatrix:
    """Round weights [out, in] to float8 multiples of a scale for each output."""
    wide = weight.float()
    scales = wide.abs().amax(1, keepdim=True) / FP8_MAX
    multiples = wide / scales.clamp_min(torch.finfo(torch.float32).tiny)
    values = multiples.clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    one_group = torch.zeros(weight.shape[1], dtype=torch.int64, device=weight.device)
    return QuantizedMatrix(StoredAs.FP8, values, scales, None, one_group)


def _is_like(matrix: QuantizedMatrix, other: QuantizedMatrix) -> bool:
    return (
        matrix.stored_as is other.stored_as
        and (matrix.zeros is None) == (other.zeros is None)
        and torch.equal(matrix.group_of_input, other.group_of_input)
    )
