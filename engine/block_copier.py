"""Copies KV blocks on one rank: within the cache, and between it and the host tier."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from engine.block_move import MoveKind
from kernels.block_copy import block_planes, copy_blocks
from kernels.layout import IntArray


class BlockCopier:
    """Owns the rank's share of the host tier; the cache is the model runner's."""

    def __init__(self, kv_caches: Sequence[Tensor], num_host_blocks: int) -> None:
        """Allocate the host tier, on CUDA in memory that the device can reach.

        Args:
            kv_caches: of each layer, [2, num_blocks, ...].
            num_host_blocks: blocks of the host tier; 0: none.
        """
        host_caches = [
            torch.empty(
                (2, num_host_blocks, *cache.shape[2:]),
                dtype=cache.dtype,
                pin_memory=cache.device.type == "cuda" and num_host_blocks > 0,
            )
            for cache in kv_caches
        ]
        self._cache = block_planes(kv_caches, kv_caches[0].device)
        self._host = block_planes(host_caches, kv_caches[0].device)

    def apply(self, moves: IntArray) -> None:
        """Make the moves, one after the other.

        Args:
            moves: [num_moves, 3]: kind, source block, target block; see engine/block_move.py.
        """
        for kind, pairs in _independent_runs(moves.tolist()):
            come_from = self._host if kind == MoveKind.RESTORE else self._cache
            go_to = self._host if kind == MoveKind.SAVE else self._cache
            # In one stream, so in order: the forward pass that follows waits for them too.
            copy_blocks(come_from, go_to, pairs)


def _independent_runs(moves: list[list[int]]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Group neighbouring moves of one kind that may be made in any order."""
    run: list[tuple[int, int]] = []
    run_kind = -1
    read: set[int] = set()
    written: set[int] = set()
    for kind, source, target in moves:
        # Only copies read and write the same blocks.
        is_free = target not in written and (
            kind != MoveKind.COPY or (target not in read and source not in written)
        )
        if run and (kind != run_kind or not is_free):
            yield run_kind, run
            run, read, written = [], set(), set()
        run_kind = kind
        run.append((source, target))
        read.add(source)
        written.add(target)
    if run:
        yield run_kind, run
