"""Copies KV blocks on one rank: within the cache, and between it and the host tier."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.block_move import MoveKind
from kernels.block_copy import Moves, block_planes, copy_blocks
from kernels.block_planes import BlockPlanes
from kernels.layout import IntArray
from kernels.pinned import reachable_empty
from kernels.transfer import to_device

_Run = tuple[int, list[tuple[int, int]]]
"""A kind of move, and source and target of those that may be made in any order."""


class BlockCopier:
    """Owns the rank's share of the host tier; the cache is the model runner's."""

    def __init__(self, kv_caches: Sequence[Tensor], num_host_blocks: int) -> None:
        """Allocate the host tier, on CUDA in memory that the device can reach.

        Args:
            kv_caches: of each layer, [2, num_blocks, ...].
            num_host_blocks: blocks of the host tier; 0: none.
        """
        device = kv_caches[0].device
        host_caches = [
            reachable_empty((2, num_host_blocks, *cache.shape[2:]), cache.dtype, device)
            for cache in kv_caches
        ]
        self._kv_caches = kv_caches
        self._layers = [
            _Tiers(block_planes([cache], device), block_planes([host], device))
            for cache, host in zip(kv_caches, host_caches, strict=True)
        ]
        self._all = _Tiers(block_planes(kv_caches, device), block_planes(host_caches, device))
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def apply(self, moves: IntArray) -> None:
        """Make the moves, one after the other.

        Args:
            moves: [num_moves, 3]: kind, source block, target block; see engine/block_move.py.
        """
        if len(moves):
            self._all.move(_independent_runs(moves.tolist()))

    def caches(self, moves: IntArray) -> Iterator[Tensor]:
        """Make the moves and yield each layer's cache, as soon as they are made in it.

        On CUDA a stream of its own copies the blocks of the next layer while one computes.
        """
        if self._side is None or not len(moves):
            self.apply(moves)
            yield from self._kv_caches
            return
        main = torch.cuda.current_stream()
        self._side.wait_stream(main)  # the steps before may use what is overwritten now
        with torch.cuda.stream(self._side):
            runs = [
                (kind, to_device(np.array(pairs, dtype=np.int32), main.device))
                for kind, pairs in _independent_runs(moves.tolist())
            ]
        coming = (self._move_aside(layer, runs, self._side) for layer in self._layers)
        moved = next(coming)
        for cache in self._kv_caches:
            main.wait_event(moved)
            moved = next(coming, moved)
            yield cache

    def _move_aside(
        self, layer: "_Tiers", runs: list[tuple[int, Tensor]], side: torch.cuda.Stream
    ) -> torch.cuda.Event:
        with torch.cuda.stream(side):
            layer.move(runs)
        moved = torch.cuda.Event()
        moved.record(side)
        return moved


@dataclass(frozen=True, slots=True)
class _Tiers:
    """The same layers' blocks in the cache and on the host."""

    cache: BlockPlanes
    host: BlockPlanes

    def move(self, runs: Iterable[tuple[int, Moves]]) -> None:
        for kind, pairs in runs:
            come_from = self.host if kind == MoveKind.RESTORE else self.cache
            go_to = self.host if kind == MoveKind.SAVE else self.cache
            copy_blocks(come_from, go_to, pairs)


def _independent_runs(moves: list[list[int]]) -> Iterator[_Run]:
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
