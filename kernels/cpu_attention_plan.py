"""Turn the layout of a step into the index rows, masks and views that CPU attention needs."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.cpu_attention import (
    CpuAttentionPlan,
    DecodeGroup,
    PrefillSequence,
    PrefillTile,
    WindowPlan,
)
from kernels.layout import AttentionGeometry, BoolArray, IntArray, StepLayout
from kernels.workspace import Workspace

# Gathered bytes of a decode group: its buffer is written, then read twice, and should stay in the
# processor's last-level cache meanwhile.
_GROUP_BYTES = 4 << 20
# Padding a group may hold rather than be split: gathering it costs about as much as one more group.
_PADDING_BYTES = 512 << 10
# Queries of a prefill tile: fewer waste less on masked keys, more keep the products large.
_TILE_QUERIES = 256
_MASK_COLUMNS_STEP = 1024


@dataclass(frozen=True, slots=True)
class _Span:
    """Blocks of each sequence that any of its queries sees, as arrays over sequences."""

    first_block: IntArray
    num_blocks: IntArray


class CpuAttentionPlanner:
    """Plans the steps of one rank. A plan is good until the next one is made."""

    def __init__(self, geometry: AttentionGeometry, windows: frozenset[int | None]) -> None:
        self._geometry = geometry
        self._windows = windows
        self._workspace = Workspace(torch.device("cpu"))
        self._masks: dict[int | None, Tensor] = {}

    def plan(self, layout: StepLayout) -> CpuAttentionPlan:
        """Plan one step."""
        geometry = self._geometry
        num_heads = geometry.num_kv_heads * geometry.group_size
        output_shape = (layout.num_tokens, num_heads * geometry.head_dim)
        output = self._workspace.take("attention_output", output_shape, geometry.dtype)
        return CpuAttentionPlan(
            block_width=geometry.block_size * geometry.head_dim,
            scale=geometry.scale,
            store_rows=self._store_rows(layout.slot_mapping),
            windows={w: self._plan_window(layout, w, output) for w in self._windows},
            output=output,
        )

    def _store_rows(self, slot_mapping: IntArray) -> Tensor:
        geometry = self._geometry
        block_ids, offsets = np.divmod(slot_mapping.astype(np.int64), geometry.block_size)
        heads = block_ids[:, None] * geometry.num_kv_heads + np.arange(geometry.num_kv_heads)
        keys = heads * geometry.block_size + offsets[:, None]
        values_offset = geometry.num_blocks * geometry.num_kv_heads * geometry.block_size
        return torch.from_numpy(np.stack((keys, keys + values_offset), axis=-1))

    def _plan_window(self, layout: StepLayout, window: int | None, output: Tensor) -> WindowPlan:
        span = self._span(layout, window)
        num_decodes = layout.num_decodes
        decode_groups = [
            self._decode_group(layout, window, span, first, last, output)
            for first, last in self._split(span.num_blocks[:num_decodes].tolist())
        ]
        prefill_sequences = [
            self._prefill_sequence(layout, window, span, i, output)
            for i in range(num_decodes, layout.num_seqs)
        ]
        return WindowPlan(decode_groups, prefill_sequences)

    def _span(self, layout: StepLayout, window: int | None) -> _Span:
        block_size = self._geometry.block_size
        first_block = np.zeros_like(layout.seq_lens)
        if window is not None:
            first_query = layout.seq_lens - np.diff(layout.query_start_loc)
            first_block = np.maximum(first_query - window + 1, 0) // block_size
        return _Span(first_block, -(-layout.seq_lens // block_size) - first_block)

    def _split(self, num_blocks: list[int]) -> list[tuple[int, int]]:
        """Split sequences, by their blocks, into runs that fit the buffer and pad little."""
        most_blocks = max(_GROUP_BYTES // self._geometry.block_bytes, 1)
        most_padding = _PADDING_BYTES // self._geometry.block_bytes
        runs: list[tuple[int, int]] = []
        first, total, longest = 0, 0, 0
        for i, blocks in enumerate(num_blocks):
            wider = max(longest, blocks)
            padded = wider * (i + 1 - first)
            if i > first and (padded > most_blocks or padded - total - blocks > most_padding):
                runs.append((first, i))
                first, total, wider = i, 0, blocks
            total, longest = total + blocks, wider
        if num_blocks:
            runs.append((first, len(num_blocks)))
        return runs

    def _decode_group(
        self,
        layout: StepLayout,
        window: int | None,
        span: _Span,
        first: int,
        last: int,
        output: Tensor,
    ) -> DecodeGroup:
        geometry, take = self._geometry, self._workspace.take
        n, h, g, d = last - first, geometry.num_kv_heads, geometry.group_size, geometry.head_dim
        num_blocks = span.num_blocks[first:last, None]
        columns = np.arange(num_blocks.max())
        # Past its last block a sequence repeats its first one: its own content, and read before.
        columns = np.where(columns < num_blocks, columns, 0) + span.first_block[first:last, None]
        rows = self._cache_rows(np.take_along_axis(layout.block_tables[first:last], columns, 1))
        gathered = take("gathered", (len(rows), geometry.block_size * d), geometry.dtype)
        seq_lens = layout.seq_lens[first:last, None]
        seen, unwritten, mask = self._visibility(seq_lens, window, columns)
        keys, values = gathered.view(2, n * h, -1, d)[:, :, seen]
        length = keys.shape[1]
        scores = take("scores", (n * h, g, length), geometry.dtype)
        return DecodeGroup(
            first=first,
            last=last,
            rows=rows,
            gathered=gathered,
            unwritten=unwritten,
            slots=gathered.view(-1, d),
            keys=keys.transpose(1, 2),
            values=values,
            mask=mask,
            scores=scores,
            scores_by_sequence=scores.view(n, h, g, length),
            weights=take("weights", (n * h, g, length), geometry.dtype),
            output=output[first:last].view(n * h, g, d),
        )

    def _visibility(
        self, seq_lens: IntArray, window: int | None, columns: IntArray
    ) -> tuple[slice, Tensor | None, Tensor | None]:
        """Tell which gathered tokens the queries of a decode group see.

        Args:
            seq_lens: [n, 1].
            window: the sliding window.
            columns: [n, blocks] index in its sequence of each gathered block.

        Returns the tokens that any query sees, the rows never written among them, and what to
        add to the scores; None where there is nothing to do.
        """
        block_size = self._geometry.block_size
        base = columns[:, :1] * block_size
        high = seq_lens - base
        low = np.zeros_like(high) if window is None else np.maximum(seq_lens - window, 0) - base
        seen = slice(int(low.min()), int(high.max()))
        if high.min() == seen.stop and low.max() == seen.start:
            return seen, None, None  # alike, so the slice says it all
        tokens = np.arange(seen.start, seen.stop)
        hidden = (tokens < low) | (tokens >= high)
        mask = torch.zeros(hidden.shape, dtype=self._geometry.dtype)
        mask.masked_fill_(torch.from_numpy(hidden), -torch.inf)
        # A padding block may repeat one that is written in part.
        positions = columns[:, :, None] * block_size + np.arange(block_size)
        unwritten = positions.reshape(len(columns), -1) >= seq_lens
        unwritten[:, : seen.start] = False
        unwritten[:, seen.stop :] = False
        unwritten_rows = self._slot_rows(unwritten) if unwritten.any() else None
        return seen, unwritten_rows, mask[:, None, None]

    def _prefill_sequence(
        self, layout: StepLayout, window: int | None, span: _Span, i: int, output: Tensor
    ) -> PrefillSequence:
        geometry = self._geometry
        h, g, d = geometry.num_kv_heads, geometry.group_size, geometry.head_dim
        first_block, num_blocks = int(span.first_block[i]), int(span.num_blocks[i])
        rows = self._cache_rows(layout.block_tables[i : i + 1, first_block:][:, :num_blocks])
        width = geometry.block_size * d
        gathered = self._workspace.take("gathered", (len(rows), width), geometry.dtype)
        keys, values = gathered.view(2, h, 1, -1, d).expand(2, h, g, -1, d)
        first, last = layout.query_start_loc[i : i + 2].tolist()
        base = first_block * geometry.block_size
        offset = int(layout.seq_lens[i]) - last  # from token row to position in the sequence
        heads = output.view(-1, h, g, d)
        tiles = []
        for start, stop in _tiles(first, last, is_whole=first + offset == 0 and window is None):
            low = 0 if window is None else max(start + offset - window + 1, 0)
            seen = slice(low - base, stop + offset - base)
            tiles.append(
                PrefillTile(
                    first=start,
                    last=stop,
                    keys=keys[:, :, seen],
                    values=values[:, :, seen],
                    mask=self._mask(window, stop - start, start + offset - low),
                    output=heads[start:stop].permute(1, 2, 0, 3),
                )
            )
        return PrefillSequence(rows, gathered, tiles)

    def _cache_rows(self, tables: IntArray) -> Tensor:
        """Rows of K, then of V, ordered [sequence, KV head, block], for [n, blocks] block ids."""
        geometry = self._geometry
        heads = np.arange(geometry.num_kv_heads)[:, None]
        keys = tables.astype(np.int64)[:, None] * geometry.num_kv_heads + heads
        values = keys + geometry.num_blocks * geometry.num_kv_heads
        return torch.from_numpy(np.stack((keys, values)).reshape(-1))

    def _slot_rows(self, chosen: BoolArray) -> Tensor:
        """Rows of gathered tokens, K and V of every KV head, for [n, length] chosen positions."""
        h = self._geometry.num_kv_heads
        n, length = chosen.shape
        sequences, positions = np.nonzero(chosen)
        heads = sequences[:, None] * h + np.arange(h)
        rows = heads * length + positions[:, None]
        return torch.from_numpy(np.stack((rows, rows + n * h * length)).reshape(-1))

    def _mask(self, window: int | None, num_queries: int, num_before: int) -> Tensor | None:
        """Mask for consecutive queries and the keys from `num_before` before the first of them.

        A view of one mask kept for each window, since only the distance to a key matters.
        """
        if num_before == 0 and (window is None or num_queries <= window):
            return None
        origin = 0
        mask = self._masks.get(window)
        if mask is not None:
            origin = mask.shape[1] - _TILE_QUERIES
        if mask is None or origin < num_before:
            origin = -(-num_before // _MASK_COLUMNS_STEP) * _MASK_COLUMNS_STEP
            distance = np.arange(_TILE_QUERIES)[:, None] + origin
            distance = distance - np.arange(origin + _TILE_QUERIES)
            hidden = distance < 0
            if window is not None:
                hidden |= distance >= window
            mask = torch.zeros(hidden.shape, dtype=self._geometry.dtype)
            self._masks[window] = mask.masked_fill_(torch.from_numpy(hidden), -torch.inf)
        return mask[:num_queries, origin - num_before : origin + num_queries]


def _tiles(first: int, last: int, *, is_whole: bool) -> list[tuple[int, int]]:
    if is_whole:  # causal from its first token on: flash attention skips what is hidden itself
        return [(first, last)]
    starts = range(first, last, _TILE_QUERIES)
    return [(start, min(start + _TILE_QUERIES, last)) for start in starts]
