"""How the products with quantised matrices are cut into programs: a table, nothing is tuned.

The weight is the left operand and its outputs are the rows of a tile, so that few tokens waste
little of a matrix product: it has at least 64 rows there and as few as 16 columns.
"""

from dataclasses import dataclass

import torch
import triton

_PROGRAMS = 256
"""To keep a large GPU busy: about two for each of its processors."""
_MIN_STEPS = 4
"""Of a program's loop: fewer leave too little to read ahead."""
_MAX_SPLITS = 16
_MIN_BLOCK = 16
"""Fewest inputs of a product on tensor cores."""


@dataclass(frozen=True, slots=True)
class LinearTile:
    """What one program computes and how."""

    block_n: int
    """Outputs."""
    block_t: int
    """Tokens."""
    block_k: int
    """Columns of the stored weight at a time, of one group."""
    num_warps: int
    num_stages: int
    """Steps on their way at once."""


@dataclass(frozen=True, slots=True)
class LinearGrid:
    """How many programs there are and how they share the steps over the inputs."""

    shape: tuple[int, int, int]
    """Tiles of outputs, tiles of tokens, splits of the inputs."""
    num_steps: int
    steps_per_split: int


def linear_tile(num_tokens: int, group_columns: int, dtype: torch.dtype) -> LinearTile:
    """Return the tile for inputs of `dtype` and a weight stored in so many columns a group."""
    block_k = min(max(triton.next_power_of_2(group_columns), _MIN_BLOCK), 64)
    if dtype == torch.float32:
        return LinearTile(32, 16, min(block_k, 32), 4, 2)
    if num_tokens <= 64:
        block_t = max(triton.next_power_of_2(num_tokens), _MIN_BLOCK)
        return LinearTile(64, block_t, block_k, 4, 4)
    return LinearTile(128, 64, block_k, 8, 3)  # 128 tokens spill on sm_80


def linear_grid(
    num_outputs: int, num_tokens: int, num_groups: int, group_columns: int, tile: LinearTile
) -> LinearGrid:
    """Return the grid: the inputs are split where tiles alone are too few to fill a GPU.

    The same sizes give the same grid everywhere, so sums are in the same order.
    """
    num_rows, num_columns = (
        triton.cdiv(num_outputs, tile.block_n),
        triton.cdiv(num_tokens, tile.block_t),
    )
    num_steps = num_groups * triton.cdiv(group_columns, tile.block_k)
    wanted = min(_PROGRAMS // (num_rows * num_columns), num_steps // _MIN_STEPS, _MAX_SPLITS)
    steps_per_split = triton.cdiv(num_steps, max(wanted, 1))
    shape = (num_rows, num_columns, triton.cdiv(num_steps, steps_per_split))
    return LinearGrid(shape, num_steps, steps_per_split)
