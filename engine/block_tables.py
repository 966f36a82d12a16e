"""Gives requests their KV blocks and takes them back: prefix cache, host tier, growth, fork.

Between the scheduler, which knows who runs, and the block pool, which knows no requests.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from engine.block_pool import BlockPool
from engine.prefix_hash import block_hashes, root_hash
from engine.request import Request


class BlockTables:
    """The block lists of all requests of one engine."""

    def __init__(self, pool: BlockPool, model_name: str) -> None:
        self._pool = pool
        self._block_size = pool.block_size
        self._model_name = model_name
        # Blocks that a running request is about to compute, by hash: who comes for them waits.
        self._coming: dict[bytes, Request] = {}

    def extend_hashes(self, request: Request) -> None:
        """Hash the blocks that have become full."""
        if self._pool.enable_prefix_caching:
            known = request.block_hashes
            parent = known[-1] if known else root_hash(self._model_name, request.cache_salt)
            known_ids = request.token_ids
            if request.num_unknown_tokens:
                known_ids = known_ids[: request.num_known_tokens]
            known += block_hashes(parent, known_ids, self._block_size, len(known))

    def num_cached_tokens(self, request: Request) -> int:
        """Count the tokens that the prefix cache could give a request now."""
        hashes = islice(request.block_hashes, self._num_shareable_blocks(request))
        return self._pool.count_cached(hashes) * self._block_size

    def find_prefix(self, request: Request) -> list[int] | None:
        """Return the blocks that hold the beginning of a waiting request; it takes none yet.

        None: it had better wait, because what it misses is being computed right now. The first
        block it misses is another's, or it is a choice whose prompt another choice of the same
        request has not finished.
        """
        num_shareable = self._num_shareable_blocks(request)
        leader = self._leader(request)
        if leader is not None:
            is_ready = leader.num_computed_tokens >= request.num_tokens - 1
            return leader.block_ids[:num_shareable] if is_ready else None
        hashes = request.block_hashes
        found = self._pool.find(islice(hashes, num_shareable))
        if len(found) < num_shareable and len(found) < len(hashes):
            maker = self._coming.get(hashes[len(found)])
            # Those of lower classes may be kept waiting for long, and then so would this one.
            if maker is not None and maker.priority <= request.priority:
                return None
        return found

    def start(self, request: Request, prefix: list[int]) -> None:
        """Give a request without blocks its prefix, and what can be copied instead of computed.

        There must be room for all tokens the request has.

        Args:
            request: one that waited.
            prefix: as `find_prefix` has found it just now.
        """
        ref_count = self._pool.ref_count
        request.num_shared_blocks = sum(ref_count(block_id) > 0 for block_id in prefix)
        request.block_ids += prefix
        request.num_computed_tokens = len(prefix) * self._block_size
        num_shareable = self._num_shareable_blocks(request)
        leader = self._leader(request)
        if leader is not None:
            self._pool.share(prefix)
            self._fork_last_block(request, leader)
        else:
            self._pool.take(prefix)
            if self._pool.host is not None and self._pool.host.is_worth_it:
                self._restore(request, num_shareable)
        request.num_registered_blocks = request.num_computed_tokens // self._block_size
        self._claim(request, num_shareable)

    def num_lacking(self, request: Request, num_tokens: int) -> int:
        """Blocks it needs besides its own to hold `num_tokens`."""
        return -(-num_tokens // self._block_size) - len(request.block_ids)

    def grow(self, request: Request, num_tokens: int) -> None:
        """Give it blocks to hold `num_tokens`; there must be enough."""
        block_ids = self._pool.allocate(self.num_lacking(request, num_tokens))
        assert block_ids is not None, "room was checked before"
        request.block_ids += block_ids

    def register(self, request: Request) -> None:
        """Offer the blocks that have been filled to the prefix cache.

        Steps run in the order of their submission, so a block is as good as filled when what fills
        it is on its way, and the tokens in it are known.
        """
        first = request.num_registered_blocks
        end = min(request.num_computed_tokens, request.num_known_tokens) // self._block_size
        request.num_registered_blocks = end
        if first == end or not self._pool.enable_prefix_caching:
            return
        if len(request.block_hashes) < end:
            self.extend_hashes(request)
        for block_id, block_hash in zip(
            request.block_ids[first:end], request.block_hashes[first:end], strict=True
        ):
            self._pool.register(block_id, block_hash)
            if self._coming.get(block_hash) is request:
                del self._coming[block_hash]

    def release(self, request: Request, keep: bool = False) -> None:
        """Take all its blocks back. `keep`: it will come back for them."""
        if self._coming:
            for block_hash in request.block_hashes:
                if self._coming.get(block_hash) is request:
                    del self._coming[block_hash]
        self._pool.free(request.block_ids, keep)
        request.block_ids.clear()
        request.num_computed_tokens = 0
        request.num_registered_blocks = 0
        request.num_shared_blocks = 0

    def num_own_blocks(self, request: Request) -> int:
        """Count the blocks that nobody else holds."""
        ref_count = self._pool.ref_count
        return sum(ref_count(block_id) == 1 for block_id in request.block_ids)

    def held_only_by(self, requests: Iterable[Request]) -> set[int]:
        """Return the blocks that nobody else holds."""
        ref_count = self._pool.ref_count
        holds = Counter(block_id for request in requests for block_id in request.block_ids)
        return {block_id for block_id, count in holds.items() if ref_count(block_id) == count}

    def _num_shareable_blocks(self, request: Request) -> int:
        # The last known token is always computed: its logits give the next one.
        return (request.num_tokens - 1) // self._block_size

    def _fork_last_block(self, request: Request, leader: Request) -> None:
        """Copy the block that both will write to, as far as it is the same prompt."""
        num_common = request.num_tokens - 1
        if num_common % self._block_size:
            index = num_common // self._block_size
            self.grow(request, num_common)
            self._pool.copy(leader.block_ids[index], request.block_ids[index])
            request.num_computed_tokens = num_common

    def _restore(self, request: Request, num_shareable: int) -> None:
        host = self._pool.host
        assert host is not None
        while (index := len(request.block_ids)) < num_shareable:
            block_hash = request.block_hashes[index]
            if found := self._pool.lookup([block_hash]):
                request.block_ids += found
                request.num_computed_tokens = len(request.block_ids) * self._block_size
                continue
            if block_hash not in host:
                return
            # Taking a block may push another one out of the host: it is looked for afterwards.
            self.grow(request, (index + 1) * self._block_size)
            if not self._pool.restore(block_hash, request.block_ids[index]):
                return
            request.num_computed_tokens = len(request.block_ids) * self._block_size

    def _claim(self, request: Request, num_shareable: int) -> None:
        first = request.num_computed_tokens // self._block_size
        for block_hash in request.block_hashes[first:num_shareable]:
            maker = self._coming.get(block_hash)
            if maker is None or maker.priority > request.priority:
                self._coming[block_hash] = request

    def _leader(self, request: Request) -> Request | None:
        """Return the choice of the same request that has computed most of the prompt and runs.

        None where computing it again takes no longer than waiting for it.
        """
        if request.num_output_tokens or request.num_tokens <= self._block_size:
            return None
        running = (s for s in request.siblings if s is not request and s.block_ids)
        return max(running, key=lambda s: s.num_computed_tokens, default=None)
