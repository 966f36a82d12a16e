"""Which replica has which blocks cached, as far as it has said: a hint, the engine decides."""

from collections.abc import Iterable, Sequence
from itertools import accumulate, compress, count, islice, repeat, takewhile
from operator import and_, ne
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.prefix_hash import block_hashes, root_hash
from engine.request import GenerateRequest

MAX_BLOCKS: Final = 1_000_000
"""Blocks that an index remembers; those it heard of first go first. Measured, one takes 70 bytes
with few replicas and 170 with a thousand."""
KEY_BYTES: Final = 8
"""Of a block's hash. Two of a million blocks have the same key once in 37 million indexes."""
_SHARE_FORGOTTEN: Final = 16
_MAX_COUNT: Final = 255  # bits are counted in bytes, which is many times as fast
MAX_KEYS: Final = 512
"""Blocks of a prompt that are looked up: beyond them replicas differ little any more."""


def block_key(block_hash: bytes) -> int:
    """Return what the index knows a block by."""
    return int.from_bytes(block_hash[:KEY_BYTES], "little")


def prompt_keys(
    request: GenerateRequest, model_name: str, block_size: int | None
) -> tuple[int, ...]:
    """Return the keys of a prompt's first blocks, as an engine of that model has them.

    `block_size` None: engines cache no prefixes, and there are no keys.
    """
    if block_size is None:
        return ()
    root = root_hash(model_name, request.cache_salt)
    token_ids = request.prompt_token_ids[: MAX_KEYS * block_size]
    return tuple(map(block_key, block_hashes(root, token_ids, block_size)))


class PrefixIndex:
    """For each block the rows of replicas that have it, one bit each: a walk over a prompt costs
    a lookup and an AND for each block, however many replicas there are."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._holders: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, row: int, keys: Iterable[int]) -> None:
        """Note that the replica of a row has blocks."""
        bit = 1 << row
        holders = self._holders
        for key in keys:
            holders[key] = holders.get(key, 0) | bit
        too_many = len(holders) - self._max_blocks
        if too_many > 0:
            # Many at once: finding the first of a dict is linear in those deleted before it.
            oldest = islice(holders, max(too_many, self._max_blocks // _SHARE_FORGOTTEN))
            for key in list(oldest):
                del holders[key]

    def remove(self, row: int, keys: Iterable[int]) -> None:
        """Note that it has them no more."""
        others = ~(1 << row)
        for key in keys:
            if key in self._holders:
                left = self._holders[key] & others
                if left:
                    self._holders[key] = left
                else:
                    del self._holders[key]

    def drop(self, row: int) -> None:
        """Forget all that it had."""
        self.remove(row, list(self._holders))

    def overlaps(self, keys: Sequence[int], num_rows: int) -> NDArray[np.int64]:
        """Return how many of a prompt's first blocks each replica has, [num_rows].

        Args:
            keys: of the prompt's full blocks, in order.
            num_rows: above every row that was added.
        """
        held = map(self._holders.get, keys, repeat(0))
        # Each mask is a part of the one before, so a replica's depth follows from how many of the
        # different ones have its bit: most prompts part from others in a few places.
        masks = list(takewhile(bool, accumulate(held, and_)))
        is_last = list(map(ne, masks, [*masks[1:], 0]))
        ends = [0, *compress(count(1), is_last)]
        return np.array(ends)[_num_masks_with(list(compress(masks, is_last)), num_rows)]


def _num_masks_with(masks: Sequence[int], num_rows: int) -> NDArray[np.int64]:
    """Return in how many of the masks each row's bit is set, [num_rows]."""
    num_bytes = -(-num_rows // 8)
    total = np.zeros(8 * num_bytes, np.int64)
    for start in range(0, len(masks), _MAX_COUNT):
        part = masks[start : start + _MAX_COUNT]
        octets = b"".join([mask.to_bytes(num_bytes, "little") for mask in part])
        bits = np.unpackbits(np.frombuffer(octets, np.uint8), bitorder="little")
        total += bits.reshape(len(part), -1).sum(axis=0, dtype=np.uint8)
    return total[:num_rows]
