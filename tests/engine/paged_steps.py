"""Steps for a bare ModelRunner: sequences in scattered blocks, computed in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.step_input import StepInput
from kernels.layout import StepLayout


@dataclass
class PagedSequence:
    """A sequence's tokens, its blocks, and how many tokens are computed."""

    token_ids: list[int]
    block_ids: list[int]
    num_computed: int = 0


@dataclass
class PagedSequences:
    """Gives each sequence blocks from a shuffled pool."""

    num_blocks: int
    block_size: int
    free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.free = np.random.default_rng(0).permutation(self.num_blocks).tolist()

    def add(self, token_ids: Sequence[int]) -> PagedSequence:
        """Start a sequence with blocks for all of its tokens."""
        num_blocks = -(-len(token_ids) // self.block_size)
        return PagedSequence(list(token_ids), [self.free.pop() for _ in range(num_blocks)])

    def step(self, chunks: Sequence[tuple[PagedSequence, int]]) -> StepInput:
        """Compute the next tokens of each sequence, with logits for all; single tokens first."""
        starts = [sequence.num_computed for sequence, _ in chunks]
        counts = [count for _, count in chunks]
        positions = np.concatenate(
            [np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)]
        )
        tables = np.zeros((len(chunks), max(len(s.block_ids) for s, _ in chunks)), dtype=np.int32)
        token_ids: list[int] = []
        for i, (sequence, count) in enumerate(chunks):
            tables[i, : len(sequence.block_ids)] = sequence.block_ids
            token_ids += sequence.token_ids[sequence.num_computed : sequence.num_computed + count]
            sequence.num_computed += count
        owners = np.repeat(np.arange(len(chunks)), counts)
        slots = tables[owners, positions // self.block_size] * self.block_size
        layout = StepLayout(
            query_start_loc=np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
            seq_lens=np.array(starts, dtype=np.int32) + np.array(counts, dtype=np.int32),
            block_tables=tables,
            slot_mapping=(slots + positions % self.block_size).astype(np.int32),
            rows=np.arange(len(chunks), dtype=np.int32),
        )
        return StepInput(
            token_ids=np.array(token_ids, dtype=np.int32),
            positions=positions.astype(np.int32),
            logits_rows=np.arange(len(positions), dtype=np.int32),
            layout=layout,
        )
