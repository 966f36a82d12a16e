"""What the prefix cache has gained and lost since somebody asked, for whoever places requests."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CacheChanges:
    """Blocks by the hashes of their content (engine/prefix_hash.py)."""

    added: list[bytes] = field(default_factory=list)
    removed: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


class CacheLog:
    """Collects changes. What came and went meanwhile is no change.

    Never longer than twice the number of blocks: what is cached, and what was cached at the last
    `take`.
    """

    def __init__(self) -> None:
        self._is_cached: dict[bytes, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._is_cached)

    def add(self, block_hash: bytes) -> None:
        """Note a block that is cached from now on."""
        self._note(block_hash, is_cached=True)

    def remove(self, block_hash: bytes) -> None:
        """Note a block that is cached no more."""
        self._note(block_hash, is_cached=False)

    def take(self) -> CacheChanges:
        """Return the changes since the last call."""
        changes = CacheChanges(
            [key for key, is_cached in self._is_cached.items() if is_cached],
            [key for key, is_cached in self._is_cached.items() if not is_cached],
        )
        self._is_cached.clear()
        return changes

    def _note(self, block_hash: bytes, *, is_cached: bool) -> None:
        # It can only have been the opposite before.
        if self._is_cached.pop(block_hash, None) is None:
            self._is_cached[block_hash] = is_cached
