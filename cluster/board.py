"""What one process knows of all replicas of a model, and where it places requests.

Thread-safe: token streams and Ray Serve's router may live on different event loops.
"""

import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.decision import Decision, DecisionLog
from cluster.fleet import Fleet
from cluster.ledger import Ledger, LedgerEntry
from cluster.placement import PlacementPolicy, choose
from cluster.prefix_index import PrefixIndex, block_key
from cluster.request_need import RequestNeed
from cluster.snapshot import ReplicaSnapshot
from engine.cache_log import CacheChanges
from engine.snapshot import EngineSnapshot


@dataclass(slots=True)
class _Report:
    """Newest word from a replica."""

    engine: EngineSnapshot
    arrived_s: float
    connected: bool = True


class Board:
    """Newest snapshot of every member and the ledger of what is on its way to them.

    A member that has not reported yet is never chosen: silence is not idleness.
    """

    def __init__(
        self,
        *,
        policy: PlacementPolicy = choose,
        clock: Callable[[], float] = time.monotonic,
        rotation: int = 0,
    ) -> None:
        """Know nobody yet.

        Args:
            policy: places the requests.
            clock: in seconds.
            rotation: where turns among equals begin. Frontends that begin alike would all choose
                the same one of a few idle replicas.
        """
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._members: dict[str, Mapping[str, Any]] = {}
        self._reports: dict[str, _Report] = {}
        self._fleet = Fleet()
        self._ledger = Ledger(self._fleet.load)
        self._open: set[str] = set()
        """Requests that were placed and not released, wherever their replica is."""
        self._decisions = DecisionLog()
        self._index = PrefixIndex()
        self._num_choices = rotation
        self._subscribers: list[Callable[[], None]] = []

    def set_members(self, members: Mapping[str, Mapping[str, Any]]) -> None:
        """Set who is there, with what each says of itself; all else is forgotten."""
        with self._lock:
            changed = self._members != members
            for replica_id in self._members.keys() - members.keys():
                self._reports.pop(replica_id, None)
                self._forget(replica_id)
                self._fleet.drop(replica_id)
            self._members = dict(sorted(members.items()))
            subscribers = list(self._subscribers) if changed else []
        for notify in subscribers:
            notify()

    def set_policy(self, policy: PlacementPolicy) -> None:
        """Place by this policy from now on."""
        with self._lock:
            self._policy = policy

    def members(self) -> dict[str, Mapping[str, Any]]:
        """Who is there, with what each says of itself."""
        with self._lock:
            return dict(self._members)

    @property
    def has_members(self) -> bool:
        """Whether anybody is there."""
        with self._lock:
            return bool(self._members)

    def subscribe(self, notify: Callable[[], None]) -> None:
        """Call `notify`, on whatever thread, after every change of the members."""
        with self._lock:
            self._subscribers.append(notify)

    def update(
        self,
        replica_id: str,
        snapshot: EngineSnapshot,
        accepted: Sequence[str] = (),
        changes: CacheChanges | None = None,
    ) -> None:
        """Take in a snapshot and the requests it covers; it may arrive late or out of order.

        Changes of the cache must come in order, and none may be missing.
        """
        with self._lock:
            if replica_id not in self._members:
                return  # draining: it finishes what it has and gets nothing new
            known = self._reports.get(replica_id)
            if known is not None and known.engine.epoch != snapshot.epoch:
                self._forget(replica_id)
                known = None
            for request_id in accepted:
                self._ledger.acknowledge(replica_id, request_id)
            if changes:
                row = self._fleet.row(replica_id)
                self._index.add(row, map(block_key, changes.added))
                self._index.remove(row, map(block_key, changes.removed))
            if known is None or snapshot.sequence >= known.engine.sequence:
                now = self._clock()
                self._reports[replica_id] = _Report(snapshot, now)
                self._fleet.report(replica_id, snapshot, now)

    def mark_lost(self, replica_id: str) -> None:
        """Choose the replica no more until it reports again."""
        with self._lock:
            report = self._reports.get(replica_id)
            if report is None:
                return  # it has left, or never came: a row is for members alone
            report.connected = False
            self._fleet.disconnect(replica_id)
            self._forget(replica_id)

    def avoid(self, replica_id: str) -> None:
        """Choose a replica no more until it reports again; what it has is not forgotten."""
        with self._lock:
            self._fleet.disconnect(replica_id)

    def snapshots(self) -> list[ReplicaSnapshot]:
        """Newest snapshot of every member that has reported."""
        with self._lock:
            return self._snapshots()

    def choose(
        self, need: RequestNeed, among: Container[str] | None = None, *, may_queue: bool = True
    ) -> str | None:
        """Place a request and enter it in the ledger.

        Args:
            need: what it asks.
            among: replicas that may be chosen; None: all members.
            may_queue: whether one without room will do, whose engine then queues the request.

        Returns the replica; None when none can take it.
        """
        with self._lock:
            return self._choose(need, among, may_queue=may_queue)

    def choose_again(self, need: RequestNeed, among: Container[str]) -> str | None:
        """Place a request whose replica is gone on one of these; None also if it was released
        meanwhile: nobody would release what was entered now."""
        with self._lock:
            if need.request_id not in self._open:
                return None
            return self._choose(need, among, may_queue=True)

    def placement(self, request_id: str) -> str | None:
        """Where a request was placed, until it is released."""
        with self._lock:
            entry = self._ledger.find(request_id)
            return None if entry is None else entry.replica_id

    def last_placement(self, request_id: str) -> str | None:
        """Where a request was placed last, also after its release; None: not known any more."""
        with self._lock:
            return self._decisions.chosen(request_id)

    def decisions(self, request_id: str) -> list[Decision]:
        """Why a request went where it went, an entry for each attempt, oldest first."""
        with self._lock:
            return self._decisions.find(request_id)

    def num_by_reason(self) -> dict[str, int]:
        """Placements so far by the reason of the choice."""
        with self._lock:
            return {str(reason): num for reason, num in self._decisions.num_by_reason.items()}

    def release(self, request_id: str) -> LedgerEntry | None:
        """Forget a request that has ended or could not be placed; return what it had."""
        with self._lock:
            self._open.discard(request_id)
            return self._ledger.release(request_id)

    @property
    def num_requests(self) -> int:
        """Requests placed and not released."""
        with self._lock:
            return self._ledger.num_requests

    def _choose(
        self, need: RequestNeed, among: Container[str] | None, *, may_queue: bool
    ) -> str | None:
        fleet = self._fleet
        cached = self._index.overlaps(need.block_keys, fleet.num_rows)
        view = fleet.view(
            self._clock(),
            cached,
            among,
            session_replica=need.session_replica,
            num_session_tokens=need.num_session_tokens,
        )
        self._num_choices += 1
        choice = self._policy(view, need, self._num_choices)
        if choice is None or not (may_queue or choice.has_room):
            return None
        chosen = view.replica_ids[choice.row]
        num_cached = int(cached[choice.row])
        block_size = int(view.block_size[choice.row])
        entry = LedgerEntry(
            chosen,
            need.num_choices,
            need.num_blocks(block_size) - num_cached,
            need.num_prompt_tokens - num_cached * block_size,
        )
        self._decisions.add(Decision.of(need, view, choice))
        self._open.add(need.request_id)
        self._ledger.enter(need.request_id, entry)
        # Its blocks will be there before anything placed after it is looked up.
        self._index.add(choice.row, need.block_keys[num_cached:])
        return chosen

    def _forget(self, replica_id: str) -> None:
        self._ledger.drop_replica(replica_id)
        self._index.drop(self._fleet.row(replica_id))

    def _snapshots(self) -> list[ReplicaSnapshot]:
        now = self._clock()
        reports = ((replica_id, self._reports.get(replica_id)) for replica_id in self._members)
        return [
            ReplicaSnapshot(
                replica_id, report.engine, now - report.arrived_s, connected=report.connected
            )
            for replica_id, report in reports
            if report is not None
        ]
