"""Copies of KV blocks against torch."""

import pytest
import torch

from kernels.gpu.copy_blocks import block_planes, copy_blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(1, 1, 4), (3, 16, 64), (2, 8, 80)])
def test_copies_every_plane(
    dtype: torch.dtype, shape: tuple[int, int, int], device: torch.device
) -> None:
    def caches(num_blocks: int, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(2, num_blocks, *shape, generator=generator).to(device, dtype)
            for _ in range(3)
        ]

    come_from, go_to = caches(5, 0), caches(7, 1)
    expected = [cache.float() for cache in go_to]
    moves = [(4, 0), (0, 6), (4, 3)]
    for cache, source in zip(expected, come_from, strict=True):
        for block, target in moves:
            cache[:, target] = source[:, block].float()
    copy_blocks(block_planes(come_from, device), block_planes(go_to, device), moves)
    for cache, wanted in zip(go_to, expected, strict=True):
        assert torch.equal(cache.float(), wanted)
