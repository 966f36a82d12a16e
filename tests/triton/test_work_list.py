"""The list of attention work: each key once, in few and even items."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.gpu.work_list import MIN_STRETCH, cut_decodes, cut_prefills, max_parts

lengths = st.lists(st.integers(1, 40_000), min_size=1, max_size=80)


@given(lengths, st.none() | st.integers(1, 5000), st.integers(1, 32), st.integers(1, 300))
def test_every_visible_key_is_in_one_item(
    seq_lens: list[int], window: int | None, num_kv_heads: int, num_programs: int
) -> None:
    rows = np.arange(len(seq_lens), dtype=np.int32)[::-1].copy()
    cut = cut_decodes(np.array(seq_lens, dtype=np.int32), rows, window, num_kv_heads, num_programs)
    num_items = int(cut.work[0, 0])
    assert num_items == len(cut.work) - 1
    assert num_items <= max_parts(len(seq_lens), num_kv_heads, num_programs)
    parts: list[int] = []
    for sequence, length in enumerate(seq_lens):
        items = cut.work[1:][cut.work[1:, 0] == sequence]
        assert set(items[:, 1]) == {rows[sequence]}
        next_key = 0 if window is None else max(length - window, 0)
        for _, _, first, end, part in items.tolist():
            assert first == next_key < end
            next_key = end
            if part >= 0:
                parts.append(part)
        assert next_key == length
        first_part, num_parts = cut.part_ranges[sequence].tolist()
        if len(items) == 1:
            assert num_parts == 0
            assert items[0, 4] == -1
        else:
            assert items[:, 4].tolist() == list(range(first_part, first_part + num_parts))
    assert parts == list(range(len(parts)))
    assert len(parts) <= max_parts(len(seq_lens), num_kv_heads, num_programs)


@pytest.mark.parametrize(("length", "num_items"), [(1, 1), (MIN_STRETCH, 1), (MIN_STRETCH + 1, 2)])
def test_short_sequences_stay_whole(length: int, num_items: int) -> None:
    lens, rows = np.array([length], dtype=np.int32), np.zeros(1, dtype=np.int32)
    assert cut_decodes(lens, rows, None, 1, 100).work[0, 0] == num_items


@given(st.lists(st.integers(1, 300), max_size=20), st.integers(1, 64))
def test_every_query_is_in_one_tile(query_lens: list[int], queries_per_tile: int) -> None:
    rows = 3 + np.arange(len(query_lens), dtype=np.int32)
    tiles = cut_prefills(np.array(query_lens, dtype=np.int32), rows, 5, queries_per_tile)
    assert tiles.shape[1] == 3
    for i, length in enumerate(query_lens):
        own = tiles[tiles[:, 0] == i + 5]
        assert set(own[:, 1]) == {rows[i]}
        assert sorted(own[:, 2].tolist()) == list(range(0, length, queries_per_tile))
        assert own[0, 2] == max(own[:, 2])  # the last one has the most to do
    assert len(tiles) == sum(-(-length // queries_per_tile) for length in query_lens)
