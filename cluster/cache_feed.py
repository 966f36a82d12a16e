"""What an engine has in its prefix cache, for frontends that come and go."""

from cluster.prefix_index import KEY_BYTES
from engine.cache_log import CacheChanges, CacheLog


class CacheFeed:
    """Keeps a log for each reader, which begins with all that is cached."""

    def __init__(self) -> None:
        self._cached: set[bytes] = set()
        self._logs: list[CacheLog] = []

    def open(self) -> CacheLog:
        """Begin a log, of keys of KEY_BYTES."""
        log = CacheLog()
        for key in self._cached:
            log.add(key)
        self._logs.append(log)
        return log

    def close(self, log: CacheLog) -> None:
        """End a log."""
        self._logs = [other for other in self._logs if other is not log]

    def note(self, changes: CacheChanges) -> None:
        """Take what a step has changed."""
        for block_hash in changes.added:
            key = block_hash[:KEY_BYTES]
            if key not in self._cached:
                self._cached.add(key)
                for log in self._logs:
                    log.add(key)
        for block_hash in changes.removed:
            key = block_hash[:KEY_BYTES]
            if key in self._cached:
                self._cached.remove(key)
                for log in self._logs:
                    log.remove(key)
