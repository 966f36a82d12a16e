"""Where the queries, keys and values of one step lie.

Shapes of the heads: query head `g` of group `h` reads KV head `h`, so queries are kept as
[num_tokens, num_kv_heads, group_size, head_dim], whose last three dimensions flatten to the
model's own head order.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

IntArray = np.ndarray[Any, np.dtype[np.int32]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class AttentionGeometry:
    """Shape of one layer's attention and of its KV cache; the same for all layers."""

    num_blocks: int
    block_size: int
    num_kv_heads: int
    group_size: int
    """Query heads that share one KV head."""
    head_dim: int
    dtype: torch.dtype
    """Of queries and of what attention returns."""
    is_float8: bool = False
    """Keys and values are kept as float8_e4m3fn; else in `dtype`."""

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are kept in."""
        return torch.float8_e4m3fn if self.is_float8 else self.dtype

    @property
    def scale(self) -> float:
        """Factor of the scores before the softmax."""
        return 1.0 / math.sqrt(self.head_dim)

    @property
    def cache_shape(self) -> tuple[int, int, int, int, int]:
        """[2 (keys, values), num_blocks, num_kv_heads, block_size, head_dim]."""
        return (2, self.num_blocks, self.num_kv_heads, self.block_size, self.head_dim)

    @property
    def block_bytes(self) -> int:
        """Keys and values of one block in one layer."""
        _, _, num_kv_heads, block_size, head_dim = self.cache_shape
        return 2 * num_kv_heads * block_size * head_dim * self.cache_dtype.itemsize


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Sequences of one step, in the order of their tokens. Arrays on the host, all int32.

    Sequences with one query come first: they are attended together. A step writes its keys and
    values to their slots before it attends, so `seq_lens` counts this step's tokens too.
    """

    query_start_loc: IntArray
    """[num_seqs + 1]: sequence i owns tokens query_start_loc[i] to query_start_loc[i + 1]."""
    seq_lens: IntArray
    """[num_seqs]: tokens whose KV the sequence has after this step; its queries are the last."""
    block_tables: IntArray
    """[num_seqs, max_blocks]: entries past a sequence's last block are never used."""
    slot_mapping: IntArray
    """[num_tokens]: block_id * block_size + offset, where each token's KV goes."""
    rows: IntArray
    """[num_seqs]: a number of its own for each sequence, the same in every step it runs."""
    grown: IntArray | None = None
    """Sequences whose tables are not those that they had when their rows were last in a step; None:
    any of them. To compare all would take longer than a step where some are long."""

    @property
    def num_seqs(self) -> int:
        """Sequences in the step."""
        return len(self.seq_lens)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences in the step."""
        return len(self.slot_mapping)

    @property
    def num_decodes(self) -> int:
        """Length of the leading run of sequences that have exactly one query."""
        longer = np.flatnonzero(np.diff(self.query_start_loc) != 1)
        return int(longer[0]) if len(longer) else self.num_seqs
