"""Hands out KV blocks: reference counts, the prefix cache and its eviction.

Knows block ids and hashes; knows nothing of requests, tokens or tensors. Every operation costs
O(1) for each block it names. A block is in exactly one of three states:

    free        nobody refers to it, it holds nothing of use
    evictable   nobody refers to it, it holds a cached block that a lookup may revive
    held        its reference count is above zero; it may be cached (and so shared) as well

A cached block is never written again, so all its holders read the same content.

Eviction takes cold blocks before hot ones, in each group the least recently used first. A block is
hot once a lookup has found it: a prompt that comes once cannot drive out a prefix that many share.
Hot blocks are a share of the pool at most; beyond it the oldest become cold again (segmented LRU:
Karedla, Love, Wherry, "Caching strategies to improve disk system performance", 1994).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from engine.block_move import BlockMove, MoveKind
from engine.cache_log import CacheLog
from engine.host_tier import HostTier

_HOT_SHARE = 0.8
# How likely a block that no lookup has found yet is to be of use later. A guess; it decides only
# where copying costs more than a tenth of computing.
_COLD_REUSE = 0.1


class BlockPool:
    """The blocks of one KV cache."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        host: HostTier | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.host = host
        self.log = CacheLog()
        self._moves: list[BlockMove] = []
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        # A stack: the block freed last is the one most likely still in the processor's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        # Least recently used first. Not plain dicts: finding the first key of one is linear in
        # the number of keys deleted before it.
        self._cold: OrderedDict[int, None] = OrderedDict()
        self._hot: OrderedDict[int, None] = OrderedDict()
        self._is_hot = bytearray(num_blocks)
        self._max_hot_blocks = int(_HOT_SHARE * num_blocks)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that hold nothing of use."""
        return len(self._free)

    @property
    def num_evictable_blocks(self) -> int:
        """Blocks that hold a cached prefix nobody uses at present."""
        return len(self._cold) + len(self._hot)

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free) + len(self._cold) + len(self._hot)

    def ref_count(self, block_id: int) -> int:
        """Number of holders of the block."""
        return self._ref_counts[block_id]

    def is_cached(self, block_id: int) -> bool:
        """Whether a lookup can find the block."""
        return self._hashes[block_id] is not None

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take blocks with one reference each; None, and nothing taken, if there are too few."""
        if num_blocks > self.num_usable_blocks:
            return None
        block_ids = []
        for _ in range(num_blocks):
            block_id = self._free.pop() if self._free else self._evict()
            self._ref_counts[block_id] = 1
            block_ids.append(block_id)
        return block_ids

    def free(self, block_ids: Sequence[int], keep: bool = False) -> None:
        """Drop one reference to each block.

        Args:
            block_ids: in the order of the sequence. The deepest becomes evictable first: a
                prefix is of use without what follows it, never the other way round.
            keep: their content is sure to be asked for again.
        """
        for block_id in reversed(block_ids):
            count = self._ref_counts[block_id] - 1
            assert count >= 0, f"block {block_id} was freed more often than it was taken"
            self._ref_counts[block_id] = count
            if count:
                continue
            if self._hashes[block_id] is None:
                self._free.append(block_id)
            elif keep or self._is_hot[block_id]:
                self._is_hot[block_id] = True
                self._hot[block_id] = None
            else:
                self._cold[block_id] = None
        while len(self._hot) > self._max_hot_blocks:
            oldest, _ = self._hot.popitem(last=False)
            self._is_hot[oldest] = False
            self._cold[oldest] = None

    def share(self, block_ids: Iterable[int]) -> None:
        """Add one reference to each of some held blocks."""
        for block_id in block_ids:
            assert self._ref_counts[block_id] > 0, f"block {block_id} is shared but not held"
            self._ref_counts[block_id] += 1

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the cached blocks of the chain, up to the first that is missing."""
        block_ids = []
        for block_hash in hashes:
            block_id = self._cached.get(block_hash)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def count_cached(self, hashes: Iterable[bytes]) -> int:
        """Count the cached blocks of the chain, up to the first that is missing."""
        return len(self.find(hashes))

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """Find blocks and take them."""
        block_ids = self.find(hashes)
        self.take(block_ids)
        return block_ids

    def take(self, block_ids: Iterable[int]) -> None:
        """Add one reference to each of some cached blocks that were found; they become hot."""
        for block_id in block_ids:
            assert self._hashes[block_id] is not None, f"block {block_id} is found but not cached"
            if self._ref_counts[block_id] == 0:
                del (self._hot if self._is_hot[block_id] else self._cold)[block_id]
            self._is_hot[block_id] = True
            self._ref_counts[block_id] += 1

    def register(self, block_id: int, block_hash: bytes) -> None:
        """File a held block, whose content is complete, under its hash.

        If another block has that hash already it keeps it: block tables never change
        under their requests, so the copy simply stays private.
        """
        assert self._ref_counts[block_id] > 0, f"block {block_id} is registered but not held"
        if self.enable_prefix_caching and block_hash not in self._cached:
            self._cached[block_hash] = block_id
            self._hashes[block_id] = block_hash
            self.log.add(block_hash)

    def restore(self, block_hash: bytes, block_id: int) -> bool:
        """Bring content back from the host tier into a held block; False: it is not there."""
        source = None if self.host is None else self.host.get(block_hash)
        if source is None:
            return False
        self._moves.append(BlockMove(MoveKind.RESTORE, source, block_id))
        self._is_hot[block_id] = True
        self.register(block_id, block_hash)
        return True

    def copy(self, source: int, target: int) -> None:
        """Copy a held block's content into another held one."""
        self._moves.append(BlockMove(MoveKind.COPY, source, target))

    def take_moves(self) -> list[BlockMove]:
        """Return what must be copied before the next step computes, in order."""
        moves, self._moves = self._moves, []
        return moves

    def _evict(self) -> int:
        block_id, _ = (self._cold or self._hot).popitem(last=False)
        block_hash = self._hashes[block_id]
        assert block_hash is not None, f"evictable block {block_id} has no hash"
        self._save(block_id, block_hash)
        del self._cached[block_hash]
        self.log.remove(block_hash)
        self._hashes[block_id] = None
        self._is_hot[block_id] = False
        return block_id

    def _save(self, block_id: int, block_hash: bytes) -> None:
        host = self.host
        if host is None or (1.0 if self._is_hot[block_id] else _COLD_REUSE) < host.min_reuse:
            return
        target = host.put(block_hash)
        if target is not None:
            self._moves.append(BlockMove(MoveKind.SAVE, block_id, target))
