"""Cuts the attention of a step into items of work. Plain integers, made once for all layers."""

from dataclasses import dataclass

import numpy as np

from kernels.layout import IntArray

ITEMS_PER_PROGRAM = 2
"""More even out lengths better; fewer leave fewer parts to write and to combine."""
ITEM_LENGTH = 5
MIN_STRETCH = 128
"""Keys of the shortest stretch: below it a program has too little to read at once."""


@dataclass(frozen=True, slots=True)
class WorkList:
    """Stretches of keys, each for one program and one KV head at a time."""

    work: IntArray
    """[1 + items, ITEM_LENGTH]: first their number; then of each the sequence, the row of its
    block table, its first key, its end, and the part where its result goes, -1 for that of a whole
    sequence"""
    part_ranges: IntArray
    """[num_seqs, 2]: first part of each sequence and how many it has, 0 unless it was split"""


def max_parts(num_seqs: int, num_kv_heads: int, num_programs: int) -> int:
    """Return how many parts, and how many items, `cut_decodes` makes at most."""
    return ITEMS_PER_PROGRAM * num_programs // num_kv_heads + num_seqs


def cut_decodes(
    seq_lens: IntArray, rows: IntArray, window: int | None, num_kv_heads: int, num_programs: int
) -> WorkList:
    """Cut sequences with one query each, so that every program gets about the same work.

    Args:
        seq_lens: [num_seqs], each at least 1.
        rows: [num_seqs], of their block tables.
        window: keys that a query sees; None: all.
        num_kv_heads: of one rank.
        num_programs: that share the items.
    """
    firsts = np.zeros_like(seq_lens) if window is None else np.maximum(seq_lens - window, 0)
    num_keys = seq_lens - firsts
    share = -(-int(num_keys.sum()) * num_kv_heads // (ITEMS_PER_PROGRAM * num_programs))
    stretch = max(-(-share // MIN_STRETCH) * MIN_STRETCH, MIN_STRETCH)
    counts = -(-num_keys // stretch)
    owners = np.repeat(np.arange(len(seq_lens)), counts)
    index = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = firsts[owners] + index * stretch
    is_split = counts > 1
    num_parts = np.where(is_split, counts, 0)
    first_parts = np.cumsum(num_parts) - num_parts
    work = np.zeros((1 + len(owners), ITEM_LENGTH), dtype=np.int32)
    work[0, 0] = len(owners)
    work[1:, 0] = owners
    work[1:, 1] = rows[owners]
    work[1:, 2] = starts
    work[1:, 3] = np.minimum(starts + stretch, seq_lens[owners])
    work[1:, 4] = np.where(is_split[owners], first_parts[owners] + index, -1)
    return WorkList(work, np.stack((first_parts, num_parts), axis=1).astype(np.int32))


def cut_prefills(
    query_lens: IntArray, rows: IntArray, first_sequence: int, queries_per_tile: int
) -> IntArray:
    """Cut sequences into tiles of queries.

    Args:
        query_lens: [num_seqs].
        rows: [num_seqs], of their block tables.
        first_sequence: number of the first of them in the step.
        queries_per_tile: at most.

    Returns [num_tiles, 3]: sequence, row of its block table and first query of each. Late queries
    see the most keys, so the last tile of a sequence comes first.
    """
    counts = -(-query_lens // queries_per_tile)
    owners = np.repeat(np.arange(len(query_lens)), counts)
    index = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    first_query = (counts[owners] - 1 - index) * queries_per_tile
    return np.stack((owners + first_sequence, rows[owners], first_query), axis=1).astype(np.int32)
