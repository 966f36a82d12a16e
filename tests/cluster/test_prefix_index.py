"""What a frontend knows of the replicas' prefix caches."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.prefix_index import PrefixIndex
from engine.cache_log import CacheLog

REPLICAS = ("a", "b", "c")
EVENTS = st.tuples(
    st.sampled_from(["add", "remove", "drop"]),
    st.sampled_from(REPLICAS),
    st.lists(st.integers(0, 9), max_size=5),
)


@given(events=st.lists(EVENTS, max_size=30), prompt=st.lists(st.integers(0, 9), max_size=6))
def test_overlaps_are_what_sets_would_say(
    events: list[tuple[str, str, list[int]]], prompt: list[int]
) -> None:
    index = PrefixIndex()
    held: dict[str, set[int]] = {replica_id: set() for replica_id in REPLICAS}
    for what, replica_id, keys in events:
        if what == "add":
            index.add(replica_id, keys)
            held[replica_id] |= set(keys)
        elif what == "remove":
            index.remove(replica_id, keys)
            held[replica_id] -= set(keys)
        else:
            index.drop(replica_id)
            held[replica_id] = set()
    expected = {}
    for replica_id, keys_held in held.items():
        missing = (depth for depth, key in enumerate(prompt) if key not in keys_held)
        if depth := next(missing, len(prompt)):
            expected[replica_id] = depth
    assert index.overlaps(prompt) == expected
    assert len(index) == len(set.union(*held.values()))


def test_the_oldest_blocks_go_first_when_there_are_too_many() -> None:
    index = PrefixIndex(max_blocks=3)
    index.add("a", [1, 2, 3])
    index.add("b", [4, 2])
    assert index.overlaps([1]) == {}
    assert index.overlaps([2]) == {"a": 1, "b": 1}
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
