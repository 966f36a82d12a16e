"""Block pool: references, prefix cache, eviction order."""

import hashlib

import pytest

from engine.block_pool import BlockPool
from engine.prefix_hash import block_hashes, root_hash


def take(pool: BlockPool, num_blocks: int) -> list[int]:
    block_ids = pool.allocate(num_blocks)
    assert block_ids is not None
    return block_ids


def take_cached(pool: BlockPool, hashes: list[bytes]) -> list[int]:
    block_ids = take(pool, len(hashes))
    for block_id, block_hash in zip(block_ids, hashes, strict=True):
        pool.register(block_id, block_hash)
    return block_ids


def counts(pool: BlockPool) -> tuple[int, int]:
    return pool.num_free_blocks, pool.num_evictable_blocks


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(4, 16)
    assert pool.allocate(5) is None
    assert counts(pool) == (4, 0)
    held = take(pool, 3)
    assert len(set(held)) == 3
    assert pool.allocate(2) is None
    assert pool.num_free_blocks == 1
    assert pool.allocate(0) == []


def test_block_without_hash_is_free_again_after_its_last_reference() -> None:
    pool = BlockPool(4, 16)
    held = take(pool, 2)
    pool.free(held)
    assert counts(pool) == (4, 0)
    with pytest.raises(AssertionError, match="freed more often"):
        pool.free(held[:1])


def test_lookup_stops_at_the_first_missing_block() -> None:
    pool = BlockPool(8, 16)
    held = take_cached(pool, [b"a", b"b", b"c"])
    assert pool.lookup([b"a", b"b", b"x", b"c"]) == held[:2]
    assert pool.lookup([b"x", b"a"]) == []
    assert [pool.ref_count(block_id) for block_id in held] == [2, 2, 1]


def test_freed_cached_block_can_be_revived() -> None:
    pool = BlockPool(4, 16)
    held = take_cached(pool, [b"a", b"b"])
    pool.free(held)
    assert counts(pool) == (2, 2)
    assert pool.num_usable_blocks == 4
    assert pool.lookup([b"a", b"b"]) == held
    assert counts(pool) == (2, 0)


def test_shared_block_returns_only_after_all_its_holders() -> None:
    pool = BlockPool(2, 16)
    held = take_cached(pool, [b"a"])
    pool.lookup([b"a"])
    pool.free(held)
    assert counts(pool) == (1, 0)
    pool.free(held)
    assert counts(pool) == (1, 1)


def test_free_blocks_are_taken_before_cached_ones() -> None:
    pool = BlockPool(3, 16)
    cached = take_cached(pool, [b"a"])
    pool.free(cached)
    assert cached[0] not in take(pool, 2)
    assert pool.is_cached(cached[0])


def test_deepest_block_of_a_sequence_is_evicted_first() -> None:
    pool = BlockPool(3, 16)
    pool.free(take_cached(pool, [b"a", b"b", b"c"]))
    take(pool, 1)
    assert len(pool.lookup([b"a", b"b", b"c"])) == 2


def test_least_recently_freed_sequence_is_evicted_first() -> None:
    pool = BlockPool(4, 16)
    first = take_cached(pool, [b"a1", b"a2"])
    second = take_cached(pool, [b"b1", b"b2"])
    pool.free(first)
    pool.free(second)
    pool.free(pool.lookup([b"a1", b"a2"]))  # used again: now the second is the older one
    evicted = take(pool, 2)
    assert set(evicted) == set(second)
    assert not any(pool.is_cached(block_id) for block_id in evicted)
    assert pool.lookup([b"b1"]) == []
    assert pool.lookup([b"a1", b"a2"]) == first


def test_copy_of_a_cached_block_stays_private() -> None:
    pool = BlockPool(2, 16)
    first = take_cached(pool, [b"a"])
    copy = take_cached(pool, [b"a"])
    assert pool.is_cached(first[0])
    assert not pool.is_cached(copy[0])
    pool.free(copy)
    assert counts(pool) == (1, 0)
    assert pool.lookup([b"a"]) == first


def test_without_prefix_caching_nothing_is_kept() -> None:
    pool = BlockPool(2, 16, enable_prefix_caching=False)
    held = take_cached(pool, [b"a"])
    assert pool.lookup([b"a"]) == []
    pool.free(held)
    assert counts(pool) == (2, 0)


def test_block_must_be_held_to_be_registered() -> None:
    with pytest.raises(AssertionError, match="not held"):
        BlockPool(2, 16).register(0, b"a")


def test_many_evictions_stay_cheap() -> None:
    # Popping the first key of a plain dict is linear in the keys deleted before it; with
    # 200,000 evictions this test would then take minutes.
    num_blocks = 100_000
    pool = BlockPool(num_blocks, 16)
    for start in (0, num_blocks):
        hashes = [i.to_bytes(4, "big") for i in range(start, start + num_blocks)]
        pool.free(take_cached(pool, hashes))
    for _ in range(num_blocks):
        take(pool, 1)
    assert counts(pool) == (0, 0)


@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
def test_hashing_in_parts_equals_hashing_at_once(block_size: int) -> None:
    root = root_hash("model")
    token_ids = list(range(1000, 1075))
    whole = block_hashes(root, token_ids, block_size)
    assert len(whole) == len(token_ids) // block_size
    parts: list[bytes] = []
    for end in range(len(token_ids) + 1):
        parent = parts[-1] if parts else root
        parts += block_hashes(parent, token_ids[:end], block_size, len(parts))
    assert parts == whole


def test_hash_depends_on_everything_before_it() -> None:
    chains = [
        block_hashes(root_hash("model"), [1, 2, 3, 4], 2),
        block_hashes(root_hash("model"), [9, 2, 3, 4], 2),
        block_hashes(root_hash("other"), [1, 2, 3, 4], 2),
        block_hashes(root_hash("model", "salt"), [1, 2, 3, 4], 2),
    ]
    assert len({chain[1] for chain in chains}) == len(chains)
    assert root_hash("ab", "c") != root_hash("a", "bc")


def test_hash_is_blake2b_of_parent_and_little_endian_ids() -> None:
    # Spelled out: engine and router may run different releases during a rolling update.
    def blake2b(data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=16).digest()

    root = blake2b(bytes([5, *[0] * 7]) + b"model" + bytes([3, *[0] * 7]) + b"abc")
    first = blake2b(root + b"\x00\x00\x00\x00" + b"\x01\x00\x00\x00")
    second = blake2b(first + b"\x70\x11\x01\x00" + b"\xff\xff\xff\x7f")
    assert root_hash("model", "abc") == root
    assert block_hashes(root, [0, 1, 70_000, 2**31 - 1, 7], 2) == [first, second]
