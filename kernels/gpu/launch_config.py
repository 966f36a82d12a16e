"""Tile sizes of the attention kernels, chosen once: the largest that keep all in registers.

tests/triton/test_compile.py compiles them for every target and every Triton, and fails on spills.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton

_HOPPER = 90


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """Of one kernel."""

    block_m: int
    """Rows of queries, heads times positions; decode has its own rule."""
    block_n: int
    """Keys taken at once."""
    num_warps: int
    num_stages: int
    """Blocks of keys on their way at once."""


def decode_config(head_dim: int, dtype: torch.dtype, cache_dtype: torch.dtype) -> LaunchConfig:
    """Return how `decode_attention` is launched."""
    if dtype == torch.float32:  # no tensor cores: every product of a tile is in registers
        return LaunchConfig(0, 16, 4, 2)
    if head_dim > 128:
        return LaunchConfig(0, 32, 4, 2)
    return LaunchConfig(0, 64 if cache_dtype == dtype else 32, 4, 3)


def prefill_config(head_dim: int, dtype: torch.dtype) -> LaunchConfig:
    """Return how `prefill_attention` is launched, whatever the cache holds."""
    if dtype == torch.float32:
        return LaunchConfig(32, 16, 8, 1)
    is_hopper, is_amd = _target()
    # On AMD what is on its way waits in registers, and there is no room for it beside the tile.
    if head_dim > 128:
        return LaunchConfig(64, 32, 8, 1 if is_amd else 2)
    # From Hopper on, tensor cores take operands from shared memory: registers hold longer tiles.
    return LaunchConfig(128, 64 if is_hopper or is_amd else 32, 8, 1 if is_amd else 3)


@cache
def _target() -> tuple[bool, bool]:
    """Whether this is an NVIDIA GPU from Hopper on, or an AMD GPU; the interpreter is the first."""
    if triton.knobs.runtime.interpret:
        return True, False
    target = triton.runtime.driver.active.get_current_target()
    is_cuda = target.backend == "cuda"
    return is_cuda and int(target.arch) >= _HOPPER, not is_cuda
