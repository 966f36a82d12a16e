"""What one step asks of the model: plain integers, the same on every rank."""

from dataclasses import dataclass

import numpy as np

from kernels.layout import IntArray, StepLayout

_HEADER_LENGTH = 5


@dataclass(frozen=True, slots=True)
class StepInput:
    """Tokens of one step and where they lie. All arrays int32, on the host.

    It says everything: a rank that gets it needs no memory of the steps before.
    """

    token_ids: IntArray
    """[num_tokens]"""
    positions: IntArray
    """[num_tokens], in their sequence"""
    logits_rows: IntArray
    """[num_rows]: the tokens whose next token is wanted"""
    layout: StepLayout

    def pack(self) -> IntArray:
        """Join everything into one array, its length first."""
        layout = self.layout
        num_seqs, max_blocks = layout.block_tables.shape
        header = (0, len(self.token_ids), num_seqs, max_blocks, len(self.logits_rows))
        packed = np.concatenate(
            (
                np.array(header, dtype=np.int32),
                self.token_ids,
                self.positions,
                layout.slot_mapping,
                layout.query_start_loc,
                layout.seq_lens,
                self.logits_rows,
                layout.block_tables.reshape(-1),
            )
        )
        packed[0] = len(packed)
        return packed

    @classmethod
    def unpack(cls, packed: IntArray) -> "StepInput":
        """Undo `pack`; the arrays are views."""
        _, num_tokens, num_seqs, max_blocks, num_rows = packed[:_HEADER_LENGTH].tolist()
        lengths = (num_tokens, num_tokens, num_tokens, num_seqs + 1, num_seqs, num_rows)
        ends = np.cumsum((_HEADER_LENGTH, *lengths)).tolist()
        parts = np.split(packed, ends)[1:]
        token_ids, positions, slot_mapping, query_start_loc, seq_lens, logits_rows, tables = parts
        block_tables = tables.reshape(num_seqs, max_blocks)
        layout = StepLayout(query_start_loc, seq_lens, block_tables, slot_mapping)
        return cls(token_ids, positions, logits_rows, layout)
