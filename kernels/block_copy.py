"""Copies of whole KV blocks, in all layers at once: the fastest way for where they live."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import gpu_library
from kernels.block_planes import BlockPlanes


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


def copy_blocks(
    sources: BlockPlanes, targets: BlockPlanes, moves: Sequence[tuple[int, int]]
) -> None:
    """Copy blocks of every layer; moves: block to copy, block to overwrite.

    No move may touch a block that another one writes.
    """
    if sources.addresses is not None:
        gpu = gpu_library.gpu_operations()
        assert gpu is not None, "planes were prepared for the GPU without its kernels"
        gpu.copy_blocks(sources, targets, moves)
        return
    for source, target in moves:
        for come_from, go_to in zip(sources.caches, targets.caches, strict=True):
            go_to[:, target].copy_(come_from[:, source], non_blocking=True)
