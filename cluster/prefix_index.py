"""Which replica has which blocks cached, as far as it has said: a hint, the engine decides."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from engine.prefix_hash import block_hashes, root_hash
from engine.request import GenerateRequest

MAX_BLOCKS: Final = 1_000_000
"""Blocks that an index remembers; those it heard of first go first. Measured, one takes 70 bytes
with few replicas and 170 with a thousand."""
KEY_BYTES: Final = 8
"""Of a block's hash. Two of a million blocks have the same key once in 37 million indexes."""


_SHARE_FORGOTTEN: Final = 16
MAX_KEYS: Final = 512
"""Blocks of a prompt that are looked up: beyond them replicas differ little any more."""


def block_key(block_hash: bytes) -> int:
    """Return what the index knows a block by."""
    return int.from_bytes(block_hash[:KEY_BYTES], "little")


def prompt_keys(request: GenerateRequest, model_name: str, block_size: int) -> tuple[int, ...]:
    """Return the keys of a prompt's first blocks, as an engine of that model has them."""
    root = root_hash(model_name, request.cache_salt)
    token_ids = request.prompt_token_ids[: MAX_KEYS * block_size]
    return tuple(map(block_key, block_hashes(root, token_ids, block_size)))


class PrefixIndex:
    """For each block the replicas that have it, one bit each: a walk over a prompt costs a lookup
    and an AND for each block, however many replicas there are."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._holders: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        self._free_bits: list[int] = []

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, replica_id: str, keys: Iterable[int]) -> None:
        """Note that a replica has blocks."""
        bit = 1 << self._place(replica_id)
        holders = self._holders
        for key in keys:
            holders[key] = holders.get(key, 0) | bit
        too_many = len(holders) - self._max_blocks
        if too_many > 0:
            # Many at once: finding the first of a dict is linear in those deleted before it.
            oldest = islice(holders, max(too_many, self._max_blocks // _SHARE_FORGOTTEN))
            for key in list(oldest):
                del holders[key]

    def remove(self, replica_id: str, keys: Iterable[int]) -> None:
        """Note that a replica has them no more."""
        if replica_id not in self._bits:
            return
        others = ~(1 << self._bits[replica_id])
        for key in keys:
            if key in self._holders:
                left = self._holders[key] & others
                if left:
                    self._holders[key] = left
                else:
                    del self._holders[key]

    def drop(self, replica_id: str) -> None:
        """Forget all that a replica had."""
        self.remove(replica_id, list(self._holders))
        place = self._bits.pop(replica_id, None)
        if place is not None:
            self._free_bits.append(place)

    def overlaps(self, keys: Sequence[int]) -> dict[str, int]:
        """Return how many of a prompt's first blocks each replica has; those without are left out.

        Args:
            keys: of the prompt's full blocks, in order.
        """
        depth_of: dict[int, int] = {}
        alive = -1
        for depth, key in enumerate(keys):
            still = alive & self._holders.get(key, 0)
            if depth and still != alive:
                depth_of |= dict.fromkeys(_places(alive & ~still), depth)
            alive = still
            if not alive:
                break
        if alive > 0:
            depth_of |= dict.fromkeys(_places(alive), len(keys))
        if not depth_of:
            return {}
        names = {place: replica_id for replica_id, place in self._bits.items()}
        return {names[place]: depth for place, depth in depth_of.items()}

    def _place(self, replica_id: str) -> int:
        if replica_id not in self._bits:
            free = self._free_bits
            self._bits[replica_id] = free.pop() if free else len(self._bits)
        return self._bits[replica_id]


def _places(mask: int) -> Iterator[int]:
    """Yield the places of the bits that are set."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
