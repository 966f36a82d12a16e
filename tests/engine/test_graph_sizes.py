"""Which graphs are recorded, and when."""

from bisect import bisect_left
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.graph_sizes import GraphSizes

ALL = [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240]


def count_until(sizes: GraphSizes, num_rows: int, wanted: int) -> int:
    """Return how many steps of so many rows there are before one runs by the wanted graph."""
    num_steps = 0
    while sizes.choose(num_rows) != wanted:
        num_steps += 1
        assert num_steps < 1000
    return num_steps


@pytest.mark.parametrize(
    ("max_num_seqs", "first"),
    [
        (1, [1]),
        (3, [3, 2, 1]),
        (8, [8, 4, 2, 1]),
        (40, [40, 32, 16, 8, 4, 2, 1]),
        (100, [100, 64, 32, 16, 8, 4, 2, 1]),
        (256, [256, 128, 64, 32, 16, 8, 4, 2, 1]),
    ],
)
def test_a_start_records_few_the_largest_first(max_num_seqs: int, first: list[int]) -> None:
    sizes = GraphSizes.up_to(max_num_seqs)
    assert sizes.recorded == first
    assert sizes.largest == max_num_seqs


@given(st.integers(1, 600))
def test_no_step_is_padded_to_twice_its_rows(max_num_seqs: int) -> None:
    sizes = GraphSizes.up_to(max_num_seqs)
    for num_rows in range(1, max_num_seqs + 1):
        assert num_rows <= sizes.choose(num_rows) < 2 * num_rows


def test_every_size_that_comes_often_gets_its_own_in_the_end() -> None:
    sizes = GraphSizes.up_to(256)
    for _ in range(200):
        for num_rows in range(1, 257):
            sizes.choose(num_rows)
    assert sizes.recorded == [256, *reversed(ALL)]
    for num_rows in range(1, 257):
        assert sizes.choose(num_rows) == [*ALL, 256][bisect_left([*ALL, 256], num_rows)]


def test_a_size_gets_its_own_after_so_many_steps() -> None:
    sizes = GraphSizes([4, 8, 12, 16], [16], num_misses=5, num_steps_apart=1)
    assert count_until(sizes, 7, 8) == 5
    assert sizes.recorded == [16, 8]
    # Steps that fit a smaller size count for that one alone.
    assert [sizes.choose(num_rows) for num_rows in (3, 8, 9, 16)] == [8, 8, 16, 16]
    assert count_until(sizes, 12, 12) == 4
    assert count_until(sizes, 1, 4) == 4


def test_recordings_are_apart() -> None:
    sizes = GraphSizes([1, 2, 3, 4], [4], num_misses=2, num_steps_apart=50)
    chosen: list[tuple[int, int]] = []
    for step in range(300):
        num_rows = 1 + step % 3
        if sizes.choose(num_rows) == num_rows and num_rows not in dict(chosen):
            chosen.append((num_rows, step))
    assert [num_rows for num_rows, _ in chosen] == [1, 3, 2]
    steps = [step for _, step in chosen]
    # The first waits for its misses alone.
    assert steps[0] == 6
    assert all(later - step >= 50 for step, later in pairwise(steps))


def test_sizes_seldom_seen_get_none() -> None:
    sizes = GraphSizes.up_to(64)
    first = sizes.recorded
    for num_rows in (20, 36, 44) * 40:
        sizes.choose(num_rows)
    assert sizes.recorded == first


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=200),
    st.sets(st.integers(1, 12)),
    st.integers(0, 4),
    st.integers(0, 9),
)
def test_whatever_comes_a_graph_holds_it_and_ranks_agree(
    steps: list[int], first: set[int], num_misses: int, num_steps_apart: int
) -> None:
    ranks = [
        GraphSizes(
            range(1, 13), first | {12}, num_misses=num_misses, num_steps_apart=num_steps_apart
        )
        for _ in range(2)
    ]
    for num_rows in steps:
        before = set(ranks[0].recorded)
        chosen, other = (sizes.choose(num_rows) for sizes in ranks)
        assert chosen == other
        assert chosen >= num_rows
        new = set(ranks[0].recorded) - before
        assert new <= {chosen}
        assert chosen == num_rows or chosen == min(s for s in before if s >= num_rows)
