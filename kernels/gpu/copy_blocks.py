"""Copies KV blocks of all layers in one launch: inside a cache, and between it and pinned memory.

Pinned host memory has addresses that a GPU reads and writes itself, so the host tier needs no other
way. Moves are made at the same time, so none may touch what another one writes.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.block_planes import BlockPlanes
from kernels.transfer import to_device

_BLOCK = 1024
_WORD_BYTES = 4


@triton.jit
def _copy_kernel(sources, targets, moves, num_words, BLOCK: tl.constexpr):
    move = tl.program_id(0)
    plane = tl.program_id(1)
    come_from = tl.load(sources + plane).to(tl.pointer_type(tl.int32))
    go_to = tl.load(targets + plane).to(tl.pointer_type(tl.int32))
    come_from += tl.load(moves + 2 * move).to(tl.int64) * num_words
    go_to += tl.load(moves + 2 * move + 1).to(tl.int64) * num_words
    word = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = word < num_words
    tl.store(go_to + word, tl.load(come_from + word, mask=mask), mask=mask)


def block_planes(caches: Sequence[Tensor], device: torch.device) -> BlockPlanes:
    """Do what `kernels.block_copy.block_planes` does."""
    addresses = [plane.data_ptr() for cache in caches for plane in cache]
    return BlockPlanes(caches, torch.tensor(addresses, dtype=torch.int64, device=device))


def copy_blocks(
    sources: BlockPlanes, targets: BlockPlanes, moves: Sequence[tuple[int, int]] | Tensor
) -> None:
    """Do what `kernels.block_copy.copy_blocks` does; a block's bytes are a multiple of 4."""
    assert sources.addresses is not None
    assert targets.addresses is not None
    num_words, rest = divmod(targets.block_bytes or sources.block_bytes, _WORD_BYTES)
    assert not rest
    if not len(moves):
        return
    pairs = moves
    if not isinstance(pairs, Tensor):
        pairs = to_device(np.array(pairs, dtype=np.int32), sources.addresses.device)
    grid = (len(moves), len(sources.addresses), triton.cdiv(num_words, _BLOCK))
    _copy_kernel[grid](
        sources.addresses, targets.addresses, pairs, num_words, BLOCK=_BLOCK, num_warps=4
    )
