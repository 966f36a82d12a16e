"""Keeps account of KV blocks in host memory: what was evicted from the device and may come back.

Knows hashes and block ids; the copying is a step's business (engine/block_move.py). A block stays
here after it was brought back, so evicting it from the device a second time costs nothing.
"""

from collections import OrderedDict


class HostTier:
    """The host's blocks by the hash of their content; the least recently used makes room."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0, "a tier without blocks is no tier"
        self.num_blocks = num_blocks
        self.min_reuse = 0.0
        """Least probability of reuse that makes saving a block worth its copies; above 1, none."""
        self._blocks: OrderedDict[bytes, int] = OrderedDict()

    @property
    def num_used_blocks(self) -> int:
        """Blocks that hold something."""
        return len(self._blocks)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._blocks

    @property
    def is_worth_it(self) -> bool:
        """Whether anything is saved or brought back at all."""
        return self.min_reuse <= 1

    def set_price(self, move_s: float, compute_s: float) -> None:
        """Tell what it takes to copy a block and to compute one, as far as that is known."""
        if compute_s > 0:
            self.min_reuse = 2 * move_s / compute_s

    def put(self, block_hash: bytes) -> int | None:
        """Return the block to save this content in; None: it is here already."""
        if block_hash in self._blocks:
            self._blocks.move_to_end(block_hash)
            return None
        used = len(self._blocks)
        block_id = used if used < self.num_blocks else self._blocks.popitem(last=False)[1]
        self._blocks[block_hash] = block_id
        return block_id

    def get(self, block_hash: bytes) -> int | None:
        """Return the block that holds this content, and count it as used now."""
        block_id = self._blocks.get(block_hash)
        if block_id is not None:
            self._blocks.move_to_end(block_hash)
        return block_id
