"""How many bytes `kernels.ops` keeps a weight in, told by its shape alone.

The same rules as `ops.linear_weight`, `ops.gated_weight` and `ops.norm_weight` follow when they
make it; tests/engine/test_weight_prediction.py compares the two.
"""

from dataclasses import dataclass

import torch

from kernels.native_library import native_library
from kernels.weights import Packing

_FLOAT_BYTES = torch.float32.itemsize
_INDEX_BYTES = torch.int64.itemsize


@dataclass(frozen=True, slots=True)
class GroupFormat:
    """What there is beside the values of an INT4 or FP8 matrix, see `WeightGroups`."""

    size: int | None
    """Inputs of each group; None: all of them."""
    scale: torch.dtype
    is_ordered: bool
    """Inputs are in an order of their own, which is kept."""


_OF_EACH_OUTPUT = GroupFormat(None, torch.float32, is_ordered=False)


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """What decides how many bytes an element takes."""

    stored: torch.dtype
    """Of the checkpoint."""
    dtype: torch.dtype
    """What is computed in."""
    packing: Packing
    num_lanes: int
    """Of the compiled kernels' vectors, in float32; 1 where they do not pack."""
    groups: GroupFormat = _OF_EACH_OUTPUT
    """Of INT4 and FP8; by default those of what is rounded to float8 at load."""

    @classmethod
    def of(cls, stored: torch.dtype, dtype: torch.dtype, packing: Packing) -> "WeightFormat":
        """Return the format on this machine."""
        num_lanes = native_library().num_lanes() if packing.is_native else 1
        return cls(stored, dtype, packing, num_lanes)

    @property
    def keeps_what_is_stored(self) -> bool:
        """Whether a matrix is used as it was read, so that two weights may share it."""
        return self.packing is Packing.NONE and self.stored == self.dtype

    @property
    def panel(self) -> int:
        """Outputs that the compiled kernels make at once."""
        return 2 * self.num_lanes if self.packing.is_native else 1


def linear_bytes(num_outputs: int, num_inputs: int, has_bias: bool, form: WeightFormat) -> int:
    """Return the bytes of what `ops.linear_weight` makes of a matrix [num_outputs, num_inputs]."""
    return _matrix_bytes(_pad(num_outputs, form.panel), num_inputs, has_bias, form)


def gated_bytes(num_outputs: int, num_inputs: int, has_bias: bool, form: WeightFormat) -> int:
    """Return the bytes of what `ops.gated_weight` makes of two such matrices, gate and up."""
    num_rows = 2 * _pad(num_outputs, form.num_lanes)  # each of the two is padded by itself
    return _matrix_bytes(num_rows, num_inputs, has_bias, form)


def norm_bytes(num_rows: int, dim: int, dtype: torch.dtype) -> int:
    """Return the bytes of what `ops.norm_weight` makes of a gain [num_rows, dim]."""
    return num_rows * dim * (dtype.itemsize + _FLOAT_BYTES) + _FLOAT_BYTES


def _matrix_bytes(num_rows: int, num_inputs: int, has_bias: bool, form: WeightFormat) -> int:
    bias_bytes = num_rows * (_FLOAT_BYTES if form.packing.is_native else form.dtype.itemsize)
    if form.packing is Packing.INT8_PANELS:
        scale_bytes = num_rows * _FLOAT_BYTES
        num_bytes = num_rows * _pad(num_inputs, form.num_lanes) + scale_bytes
    elif form.packing is Packing.PANELS:
        keeps_halves = form.stored == torch.bfloat16
        num_bytes = num_rows * num_inputs * (form.stored.itemsize if keeps_halves else _FLOAT_BYTES)
    elif form.packing.is_grouped:
        num_bytes = _grouped_bytes(num_rows, num_inputs, form.packing, form.groups)
    else:
        num_bytes = num_rows * num_inputs * form.dtype.itemsize
    return num_bytes + (bias_bytes if has_bias else 0)


def _grouped_bytes(num_rows: int, num_inputs: int, packing: Packing, groups: GroupFormat) -> int:
    size = min(groups.size or num_inputs, num_inputs)
    num_groups = -(-num_inputs // size)
    row_bytes = num_groups * groups.scale.itemsize
    if packing is Packing.INT4:
        row_bytes += num_groups * (-(-size // 2) + 1)  # two values a byte, and the zero
    else:
        row_bytes += num_inputs
    return num_rows * row_bytes + (num_inputs * _INDEX_BYTES if groups.is_ordered else 0)


def _pad(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
