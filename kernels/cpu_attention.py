"""Paged attention on CPU: gather blocks into a reused buffer, then dense matrix products.

Decode     group of sequences: gather K and V -> scores = q K^T -> + mask -> softmax -> weights V,
           the `group_size` query heads of a KV head being the rows of one product
Prefill    one sequence: gather prefix and chunk, then torch's flash attention tile by tile

All that depends on the step alone is in the plan; a layer runs only these operations.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one query each and about the same length, attended together.

    Every tensor but `rows`, `unwritten` and `mask` is a view of a reused buffer.
    n sequences, h KV heads, g query heads a KV head, l tokens of the longest in whole blocks.
    """

    first: int
    last: int
    rows: Tensor
    """[2 * n * h * blocks] int64: rows of the cache as [.., block_size * head_dim]"""
    gathered: Tensor
    """[2 * n * h * blocks, block_size * head_dim]"""
    unwritten: Tensor | None
    """int64 rows of `slots` past the end of their sequence; None: there are none"""
    slots: Tensor
    """[2 * n * h * l, head_dim], the gathered tokens one by one"""
    keys: Tensor
    """[n * h, head_dim, l]"""
    values: Tensor
    """[n * h, l, head_dim]"""
    mask: Tensor | None
    """[n, 1, 1, l], added to the scores; None: all is visible"""
    scores: Tensor
    """[n * h, g, l]"""
    scores_by_sequence: Tensor
    """[n, h, g, l]"""
    weights: Tensor
    """[n * h, g, l]"""
    output: Tensor
    """[n * h, g, head_dim]"""


@dataclass(frozen=True, slots=True)
class PrefillTile:
    """Consecutive queries of one sequence and the keys that any of them sees."""

    first: int
    last: int
    keys: Tensor
    """[h, g, l, head_dim]"""
    values: Tensor
    """[h, g, l, head_dim]"""
    mask: Tensor | None
    """[last - first, l], added to the scores; None: causal, with as many keys as queries"""
    output: Tensor
    """[h, g, last - first, head_dim]"""


@dataclass(frozen=True, slots=True)
class PrefillSequence:
    """A sequence with several queries."""

    rows: Tensor
    """[2 * h * blocks] int64: rows of the cache as [.., block_size * head_dim]"""
    gathered: Tensor
    """[2 * h * blocks, block_size * head_dim]"""
    tiles: list[PrefillTile]


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """What layers with one and the same sliding window do."""

    decode_groups: list[DecodeGroup]
    prefill_sequences: list[PrefillSequence]


@dataclass(frozen=True, slots=True)
class CpuAttentionPlan:
    """One step's attention, ready to run in any layer."""

    block_width: int
    """block_size * head_dim"""
    scale: float
    store_rows: Tensor
    """[num_tokens, h, 2] int64: where keys and values go, rows of the cache as [.., head_dim]"""
    windows: dict[int | None, WindowPlan]
    output: Tensor
    """[num_tokens, h * g * head_dim], overwritten by each layer"""


def store_kv(key_value: Tensor, kv_cache: Tensor, plan: CpuAttentionPlan) -> None:
    """Write each token's key and value to its slot."""
    slots = kv_cache.view(-1, kv_cache.shape[-1])
    slots.index_put_((plan.store_rows,), key_value)


def paged_attention(
    query: Tensor, kv_cache: Tensor, plan: CpuAttentionPlan, window: int | None
) -> Tensor:
    """Attend; the result is overwritten by the next call with the same plan."""
    blocks = kv_cache.view(-1, plan.block_width)
    work = plan.windows[window]
    for group in work.decode_groups:
        _attend_group(query, blocks, group, plan.scale)
    for sequence in work.prefill_sequences:
        torch.index_select(blocks, 0, sequence.rows, out=sequence.gathered)
        for tile in sequence.tiles:
            _attend_tile(query, tile, plan.scale)
    return plan.output


def _attend_group(query: Tensor, blocks: Tensor, group: DecodeGroup, scale: float) -> None:
    torch.index_select(blocks, 0, group.rows, out=group.gathered)
    if group.unwritten is not None:
        # What was never written may be NaN, and NaN * 0 would reach the output through both
        # products, whatever the mask says.
        group.slots.index_fill_(0, group.unwritten, 0)
    rows = query[group.first : group.last].flatten(0, 1)
    scores = group.scores
    torch.baddbmm(scores, rows, group.keys, beta=0, alpha=scale, out=scores)
    if group.mask is not None:
        group.scores_by_sequence.add_(group.mask)
    torch.softmax(scores, -1, out=group.weights)
    torch.bmm(group.weights, group.values, out=group.output)


def _attend_tile(query: Tensor, tile: PrefillTile, scale: float) -> None:
    # KV heads as the batch and query heads as the heads: keys expand without a copy.
    rows = query[tile.first : tile.last].permute(1, 2, 0, 3)
    attended = F.scaled_dot_product_attention(
        rows, tile.keys, tile.values, tile.mask, is_causal=tile.mask is None, scale=scale
    )
    tile.output.copy_(attended)
