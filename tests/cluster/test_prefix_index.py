"""What a frontend knows of the replicas' prefix caches."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.prefix_index import PrefixIndex
from engine.cache_log import CacheLog

REPLICAS = (0, 1, 11)
EVENTS = st.tuples(
    st.sampled_from(["add", "remove", "drop"]),
    st.sampled_from(REPLICAS),
    st.lists(st.integers(0, 9), max_size=5),
)


@given(events=st.lists(EVENTS, max_size=30), prompt=st.lists(st.integers(0, 9), max_size=6))
def test_overlaps_are_what_sets_would_say(
    events: list[tuple[str, int, list[int]]], prompt: list[int]
) -> None:
    index = PrefixIndex()
    held: dict[int, set[int]] = {row: set() for row in REPLICAS}
    for what, row, keys in events:
        if what == "add":
            index.add(row, keys)
            held[row] |= set(keys)
        elif what == "remove":
            index.remove(row, keys)
            held[row] -= set(keys)
        else:
            index.drop(row)
            held[row] = set()
    expected = [0] * 12
    for row, keys_held in held.items():
        missing = (depth for depth, key in enumerate(prompt) if key not in keys_held)
        expected[row] = next(missing, len(prompt))
    assert index.overlaps(prompt, 12).tolist() == expected
    assert len(index) == len(set.union(*held.values()))


def test_the_oldest_blocks_go_first_when_there_are_too_many() -> None:
    index = PrefixIndex(max_blocks=3)
    index.add(0, [1, 2, 3])
    index.add(1, [4, 2])
    assert index.overlaps([1], 2).tolist() == [0, 0]
    assert index.overlaps([2], 2).tolist() == [1, 1]
    assert len(index) == 3


def test_what_came_and_went_is_no_change() -> None:
    log = CacheLog()
    log.add(b"stays")
    log.add(b"goes")
    log.remove(b"goes")
    changes = log.take()
    assert (changes.added, changes.removed) == ([b"stays"], [])
    log.remove(b"stays")
    log.add(b"stays")
    log.remove(b"stays")
    changes = log.take()
    assert (changes.added, changes.removed) == ([], [b"stays"])
    assert log.take().added == []


def test_prefixes_may_have_more_blocks_than_a_byte_counts() -> None:
    index = PrefixIndex()
    index.add(0, range(1000))
    index.add(1, range(300))
    assert index.overlaps(range(700), 2).tolist() == [700, 300]
