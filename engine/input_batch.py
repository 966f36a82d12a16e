"""Turn what the scheduler chose into arrays, keeping block tables from step to step."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.batch import Batch, ScheduledRequest
from engine.request import Request, RequestStatus
from engine.step_input import StepInput
from kernels.layout import IntArray, StepLayout


@dataclass(slots=True)
class _Row:
    """Where a running sequence's block table is kept, and how much of it is known."""

    index: int
    num_blocks: int = 0
    num_preemptions: int = 0


class InputBatch:
    """The running sequences of rank 0, one row of block ids each.

    A sequence's block list only grows between preemptions, so a step writes new entries alone.
    """

    def __init__(self, *, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        self._block_size = block_size
        max_blocks = -(-max_model_len // block_size)
        self._block_tables = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self._rows: dict[Request, _Row] = {}
        self._free = list(range(max_num_seqs - 1, -1, -1))

    def step_input(self, batch: Batch) -> StepInput:
        """Return the step's arrays; the logits rows are those of `batch.wanting`, in its order."""
        requests = [item.request for item in batch.requests]
        self._release_rows(requests)
        known = [self._row(request) for request in requests]
        rows = np.array([row.index for row in known], dtype=np.int64)
        has_grown = np.array([self._grow(*pair) for pair in zip(known, requests, strict=True)])
        computed = np.array(batch.starts, dtype=np.int32)
        counts = np.array([item.num_scheduled_tokens for item in batch.requests], dtype=np.int32)
        order = self._order(computed, counts)
        rows, computed, counts = rows[order], computed[order], counts[order]
        grown = np.flatnonzero(has_grown[order]).astype(np.int32)

        query_start_loc = np.zeros(len(requests) + 1, dtype=np.int32)
        np.cumsum(counts, out=query_start_loc[1:])
        seq_lens = computed + counts
        max_blocks = -(-int(seq_lens.max()) // self._block_size)
        block_tables = self._block_tables[rows, :max_blocks]
        num_tokens = int(query_start_loc[-1])
        offsets = np.repeat(computed - query_start_loc[:-1], counts)
        positions = np.arange(num_tokens, dtype=np.int32) + offsets
        blocks, within = np.divmod(positions, self._block_size)
        owners = np.repeat(np.arange(len(requests)), counts)
        slot_mapping = block_tables[owners, blocks] * self._block_size + within

        last_rows = np.empty(len(requests), dtype=np.int32)
        last_rows[order] = query_start_loc[1:] - 1
        return StepInput(
            token_ids=_token_ids([batch.requests[i] for i in order.tolist()], num_tokens),
            positions=positions,
            # In the batch's order, which changes less from step to step than ours.
            logits_rows=last_rows[batch.wanting],
            layout=StepLayout(
                query_start_loc, seq_lens, block_tables, slot_mapping, rows.astype(np.int32), grown
            ),
            moves=np.array(batch.moves, dtype=np.int32).reshape(-1, 3),
        )

    def _order(self, computed: IntArray, counts: IntArray) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Order single tokens first, the longest sequences leading: neighbours then pad little."""
        key = np.where(counts > 1, 1, -(computed // self._block_size))
        return np.argsort(key, kind="stable")

    def _row(self, request: Request) -> _Row:
        row = self._rows.get(request)
        if row is None:
            row = self._rows[request] = _Row(self._free.pop())
        if row.num_preemptions != request.num_preemptions:
            row.num_preemptions = request.num_preemptions
            row.num_blocks = 0  # it has come back with other blocks
        return row

    def _grow(self, row: _Row, request: Request) -> bool:
        """Bring the request's block table up to date; return whether it was not."""
        num_blocks = len(request.block_ids)
        if num_blocks == row.num_blocks:
            return False
        new_block_ids = request.block_ids[row.num_blocks :]
        self._block_tables[row.index, row.num_blocks : num_blocks] = new_block_ids
        row.num_blocks = num_blocks
        return True

    def _release_rows(self, requests: list[Request]) -> None:
        """Give back the rows of sequences that have ended or were preempted."""
        for request in self._rows.keys() - set(requests):
            if request.status is not RequestStatus.RUNNING:
                self._free.append(self._rows.pop(request).index)


def _token_ids(scheduled: list[ScheduledRequest], num_tokens: int) -> IntArray:
    token_ids: list[int] = []
    for item in scheduled:
        first = item.request.num_computed_tokens
        token_ids += item.request.token_ids[first : first + item.num_scheduled_tokens]
    assert len(token_ids) == num_tokens, "the scheduler asked for tokens that do not exist"
    return np.array(token_ids, dtype=np.int32)
