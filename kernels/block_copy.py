"""Copies of whole KV blocks, in all layers at once: the fastest way for where they live."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import gpu_library
from kernels.block_planes import BlockPlanes

Moves = Sequence[tuple[int, int]] | Tensor
"""Block to copy, block to overwrite; as a tensor [num_moves, 2] int32 on the device."""


def block_planes(caches: Sequence[Tensor], device: torch.device) -> BlockPlanes:
    """Prepare caches for `copy_blocks`.

    caches: of each layer, [2 (keys, values), num_blocks, ...] contiguous, on the device or in
    memory that it reaches; they must not move afterwards.
    """
    gpu = gpu_library.gpu_operations() if device.type != "cpu" else None
    if gpu is None:
        return BlockPlanes(caches, addresses=None)
    planes: BlockPlanes = gpu.block_planes(caches, device)
    return planes


def copy_blocks(sources: BlockPlanes, targets: BlockPlanes, moves: Moves) -> None:
    """Copy blocks of every layer.

    No move may touch a block that another one writes. Moves on the device are good for planes
    that were prepared for it.
    """
    if sources.addresses is not None:
        gpu = gpu_library.gpu_operations()
        assert gpu is not None, "planes were prepared for the GPU without its kernels"
        gpu.copy_blocks(sources, targets, moves)
        return
    assert not isinstance(moves, Tensor)
    for source, target in moves:
        for come_from, go_to in zip(sources.caches, targets.caches, strict=True):
            go_to[:, target].copy_(come_from[:, source], non_blocking=True)
