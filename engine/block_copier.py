"""Copies KV blocks on one rank: within the cache, and between it and the host tier."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.block_move import MoveKind
from kernels.layout import IntArray


class BlockCopier:
    """Owns the rank's share of the host tier; the cache is the model runner's."""

    def __init__(self, kv_caches: Sequence[Tensor], num_host_blocks: int) -> None:
        """Allocate the host tier, on CUDA in memory that the device can reach.

        Args:
            kv_caches: of each layer, [2, num_blocks, ...].
            num_host_blocks: blocks of the host tier; 0: none.
        """
        self._kv_caches = kv_caches
        self._host_caches = [
            torch.empty(
                (2, num_host_blocks, *cache.shape[2:]),
                dtype=cache.dtype,
                pin_memory=cache.device.type == "cuda" and num_host_blocks > 0,
            )
            for cache in kv_caches
        ]

    def apply(self, moves: IntArray) -> None:
        """Make the moves, one after the other.

        Args:
            moves: [num_moves, 3]: kind, source block, target block; see engine/block_move.py.
        """
        for kind, source, target in moves.tolist():
            for cache, host in zip(self._kv_caches, self._host_caches, strict=True):
                come_from = host if kind == MoveKind.RESTORE else cache
                go_to = host if kind == MoveKind.SAVE else cache
                # In one stream, so in order: the forward pass that follows waits for them too.
                go_to[:, target].copy_(come_from[:, source], non_blocking=True)
