"""Block tables of all running sequences on the device, brought up to date by what changed."""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.layout import IntArray, StepLayout

_BLOCK = 256


# One kernel for any count: another one would be compiled while requests wait.
@triton.jit(do_not_specialize=["count"])
def _scatter_kernel(target, places, values, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    place = tl.load(places + index, mask=mask, other=0)
    tl.store(target + place, tl.load(values + index, mask=mask, other=0), mask=mask)


class TableStore:
    """A row of block ids for each sequence: on the device, and the same on the host.

    A sequence gets a block every `block_size` tokens, so next to nothing crosses to the device in a
    step of decodes, however long the sequences are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mirror = np.zeros((0, 0), dtype=np.int32)
        self.tables = torch.zeros((0, 0), dtype=torch.int32, device=device)
        """[rows, max_blocks] int32"""

    def reserve(self, num_rows: int, max_blocks: int) -> None:
        """Make room; growing moves the tables to another address."""
        old_rows, old_blocks = self._mirror.shape
        if num_rows <= old_rows and max_blocks <= old_blocks:
            return
        shape = (max(num_rows, old_rows), max(max_blocks, old_blocks))
        mirror = np.zeros(shape, dtype=np.int32)
        mirror[:old_rows, :old_blocks] = self._mirror
        self._mirror = mirror
        # Out of inference mode: the tables outlive the step that asks first.
        with torch.inference_mode(mode=False):
            tables = torch.zeros(shape, dtype=torch.int32, device=self._device)
        tables[:old_rows, :old_blocks] = self.tables
        self.tables = tables

    def changes(self, layout: StepLayout) -> tuple[IntArray, IntArray]:
        """Take over a step's tables; return the places and values that `apply` needs."""
        rows, tables = layout.rows, layout.block_tables
        num_blocks = tables.shape[1]
        self.reserve(int(rows.max()) + 1, num_blocks)
        if layout.grown is not None:
            rows, tables = rows[layout.grown], tables[layout.grown]
        sequences, columns = np.nonzero(self._mirror[rows, :num_blocks] != tables)
        values = tables[sequences, columns]
        owners = rows[sequences]
        self._mirror[owners, columns] = values
        places = owners * self._mirror.shape[1] + columns
        return places.astype(np.int32), values

    def apply(self, places: Tensor, values: Tensor) -> None:
        """Make the changes on the device, where both are."""
        count = len(places)
        if count:
            grid = (triton.cdiv(count, _BLOCK),)
            _scatter_kernel[grid](self.tables, places, values, count, BLOCK=_BLOCK, num_warps=4)
