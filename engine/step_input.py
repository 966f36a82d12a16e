"""What one step asks of the model: plain integers, the same on every rank."""

from dataclasses import dataclass, field

import numpy as np

from kernels.layout import IntArray, StepLayout

_HEADER_LENGTH = 6
_MOVE_LENGTH = 3


@dataclass(frozen=True, slots=True)
class StepInput:
    """Tokens of one step and where they lie. All arrays int32, on the host.

    It says everything: a rank that gets it needs no memory of the steps before.
    """

    token_ids: IntArray
    """[num_tokens]; -1: the one drawn last for the sequence, which only the device knows"""
    positions: IntArray
    """[num_tokens], in their sequence"""
    logits_rows: IntArray
    """[num_rows]: the tokens whose next token is wanted"""
    layout: StepLayout
    moves: IntArray = field(default_factory=lambda: np.zeros((0, _MOVE_LENGTH), dtype=np.int32))
    """[num_moves, 3]: copies of blocks to make first; see engine/block_move.py"""

    @property
    def token_rows(self) -> IntArray:
        """The row of the block tables of each token, [num_tokens]."""
        return np.repeat(self.layout.rows, np.diff(self.layout.query_start_loc))

    @property
    def drawn_rows(self) -> IntArray:
        """The same of each wanted token, [num_rows]."""
        owners = np.searchsorted(self.layout.query_start_loc, self.logits_rows, side="right") - 1
        return self.layout.rows[owners]

    def pack(self) -> IntArray:
        """Join everything into one array, its length first."""
        layout = self.layout
        num_seqs, max_blocks = layout.block_tables.shape
        num_rows, num_moves = len(self.logits_rows), len(self.moves)
        header = (0, len(self.token_ids), num_seqs, max_blocks, num_rows, num_moves)
        packed = np.concatenate(
            (
                np.array(header, dtype=np.int32),
                self.token_ids,
                self.positions,
                layout.slot_mapping,
                layout.query_start_loc,
                layout.seq_lens,
                layout.rows,
                self.logits_rows,
                self.moves.reshape(-1),
                layout.block_tables.reshape(-1),
            )
        )
        packed[0] = len(packed)
        return packed

    @classmethod
    def unpack(cls, packed: IntArray) -> "StepInput":
        """Undo `pack`; the arrays are views."""
        header = packed[:_HEADER_LENGTH].tolist()
        _, num_tokens, num_seqs, max_blocks, num_rows, num_moves = header
        of_tokens, of_sequences = (num_tokens,) * 3, (num_seqs + 1, num_seqs, num_seqs)
        lengths = (*of_tokens, *of_sequences, num_rows, num_moves * _MOVE_LENGTH)
        ends = np.cumsum((_HEADER_LENGTH, *lengths)).tolist()
        parts = np.split(packed, ends)[1:]
        token_ids, positions, slot_mapping, query_start_loc, seq_lens, rows, logits_rows = parts[:7]
        moves = parts[7].reshape(num_moves, _MOVE_LENGTH)
        block_tables = parts[8].reshape(num_seqs, max_blocks)
        layout = StepLayout(query_start_loc, seq_lens, block_tables, slot_mapping, rows)
        return cls(token_ids, positions, logits_rows, layout, moves)
