"""Hands out KV blocks: reference counts, the prefix cache and its eviction.

Knows block ids and hashes; knows nothing of requests, tokens or tensors. Every operation costs
O(1) for each block it names. A block is in exactly one of three states:

    free        nobody refers to it, it holds nothing of use
    evictable   nobody refers to it, it holds a cached block that a lookup may revive
    held        its reference count is above zero; it may be cached (and so shared) as well

A cached block is never written again, so all its holders read the same content.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """The blocks of one KV cache."""

    def __init__(
        self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        # A stack: the block freed last is the one most likely still in the processor's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        # Least recently used first. Not a plain dict: finding its first key is linear in the
        # number of keys deleted before it.
        self._evictable: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free_blocks(self) -> int:
        """Blocks that hold nothing of use."""
        return len(self._free)

    @property
    def num_evictable_blocks(self) -> int:
        """Blocks that hold a cached prefix nobody uses at present."""
        return len(self._evictable)

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free) + len(self._evictable)

    def ref_count(self, block_id: int) -> int:
        """Number of holders of the block."""
        return self._ref_counts[block_id]

    def is_cached(self, block_id: int) -> bool:
        """Whether a lookup can find the block."""
        return self._hashes[block_id] is not None

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take blocks with one reference each; None, and nothing taken, if there are too few."""
        if num_blocks > len(self._free) + len(self._evictable):
            return None
        block_ids = []
        for _ in range(num_blocks):
            block_id = self._free.pop() if self._free else self._evict()
            self._ref_counts[block_id] = 1
            block_ids.append(block_id)
        return block_ids

    def free(self, block_ids: Sequence[int]) -> None:
        """Drop one reference to each block.

        Args:
            block_ids: in the order of the sequence. The deepest becomes evictable first: a
                prefix is of use without what follows it, never the other way round.
        """
        for block_id in reversed(block_ids):
            count = self._ref_counts[block_id] - 1
            assert count >= 0, f"block {block_id} was freed more often than it was taken"
            self._ref_counts[block_id] = count
            if count:
                continue
            if self._hashes[block_id] is None:
                self._free.append(block_id)
            else:
                self._evictable[block_id] = None

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """Take a reference to each cached block of the chain, up to the first that is missing."""
        block_ids = []
        for block_hash in hashes:
            block_id = self._cached.get(block_hash)
            if block_id is None:
                break
            if self._ref_counts[block_id] == 0:
                del self._evictable[block_id]
            self._ref_counts[block_id] += 1
            block_ids.append(block_id)
        return block_ids

    def register(self, block_id: int, block_hash: bytes) -> None:
        """File a held block, whose content is complete, under its hash.

        If another block has that hash already it keeps it: block tables never change
        under their requests, so the copy simply stays private.
        """
        assert self._ref_counts[block_id] > 0, f"block {block_id} is registered but not held"
        if self.enable_prefix_caching and block_hash not in self._cached:
            self._cached[block_hash] = block_id
            self._hashes[block_id] = block_hash

    def _evict(self) -> int:
        block_id, _ = self._evictable.popitem(last=False)
        block_hash = self._hashes[block_id]
        assert block_hash is not None, f"evictable block {block_id} has no hash"
        del self._cached[block_hash]
        self._hashes[block_id] = None
        return block_id
