"""The KV blocks of all layers, as something to copy from and to."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class BlockPlanes:
    """Made by `kernels.block_copy.block_planes`."""

    caches: Sequence[Tensor]
    """Of each layer, [2 (keys, values), num_blocks, ...] contiguous"""
    addresses: Tensor | None
    """[2 * layers] int64 on the device: where each layer's keys and values begin; None where
    torch does the copying"""

    @property
    def block_bytes(self) -> int:
        """Of one block's keys, or values, in one layer."""
        return self.caches[0][0].nbytes // max(self.caches[0].shape[1], 1)
