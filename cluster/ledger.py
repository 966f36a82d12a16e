"""What this process has placed on replicas and their snapshots do not show yet."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One placed request."""

    replica_id: str
    num_seqs: int
    num_blocks: int
    num_prefill_tokens: int


@dataclass(slots=True)
class LedgerLoad:
    """Sums over one replica's entries."""

    num_seqs: int = 0
    """On the way: the engine has not acknowledged them, its snapshots leave them out."""
    num_blocks: int = 0
    num_prefill_tokens: int = 0
    num_requests: int = 0
    """Placed by us and not ended, acknowledged or not."""


class Ledger:
    """Entries by request id. An entry goes by what happens to the request, never by a clock.

    The engine's acknowledgement takes it off the load; the end of the request, or of the
    replica, forgets it.
    """

    def __init__(self, on_change: Callable[[str, LedgerLoad], None] | None = None) -> None:
        """Begin empty; `on_change` is told a replica's new load whenever it changes."""
        self._on_change = on_change
        self._placed: dict[str, LedgerEntry] = {}
        self._unacknowledged: set[str] = set()
        self._loads: dict[str, LedgerLoad] = {}

    def enter(self, request_id: str, entry: LedgerEntry) -> None:
        """Note a placement; an earlier one of the same request is void."""
        self.release(request_id)
        self._placed[request_id] = entry
        self._unacknowledged.add(request_id)
        load = self._loads.setdefault(entry.replica_id, LedgerLoad())
        load.num_requests += 1
        self._add(entry, +1)
        self._tell(entry.replica_id)

    def acknowledge(self, replica_id: str, request_id: str) -> None:
        """The replica's snapshots cover the request from now on."""
        entry = self._placed.get(request_id)
        # An acceptance by a replica that the request has left since says nothing of this one.
        if entry is not None and entry.replica_id == replica_id:
            self._take_off(request_id, entry)
            self._tell(replica_id)

    def release(self, request_id: str) -> LedgerEntry | None:
        """The request has ended, or was never taken; return what it had."""
        entry = self._placed.pop(request_id, None)
        if entry is not None:
            self._loads[entry.replica_id].num_requests -= 1
            self._take_off(request_id, entry)
            self._tell(entry.replica_id)
        return entry

    def drop_replica(self, replica_id: str) -> None:
        """The replica is gone and all it had with it."""
        gone = [key for key, entry in self._placed.items() if entry.replica_id == replica_id]
        for request_id in gone:
            self.release(request_id)
        self._loads.pop(replica_id, None)

    def find(self, request_id: str) -> LedgerEntry | None:
        """Return what a request has, if it is placed."""
        return self._placed.get(request_id)

    def load(self, replica_id: str) -> LedgerLoad:
        """Present load of one replica."""
        return self._loads.get(replica_id) or LedgerLoad()

    @property
    def num_requests(self) -> int:
        """Entries in all; 0 when every request has ended."""
        return len(self._placed)

    def _take_off(self, request_id: str, entry: LedgerEntry) -> None:
        if request_id in self._unacknowledged:
            self._unacknowledged.remove(request_id)
            self._add(entry, -1)

    def _add(self, entry: LedgerEntry, sign: int) -> None:
        load = self._loads[entry.replica_id]
        load.num_seqs += sign * entry.num_seqs
        load.num_blocks += sign * entry.num_blocks
        load.num_prefill_tokens += sign * entry.num_prefill_tokens

    def _tell(self, replica_id: str) -> None:
        if self._on_change is not None:
            self._on_change(replica_id, self._loads[replica_id])
