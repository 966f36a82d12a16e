"""The replicas of a model as columns of numbers: to choose among many is a few array operations.

Every replica has a row, which stays the same while it is there.
"""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.ledger import LedgerLoad
from engine.snapshot import EngineSnapshot, EngineState

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MAX_AGE_S: Final = 2.0
"""A report that is late by more than this is used only if there is nothing better."""
_FIRST_ROWS: Final = 16
_GAP_DECAY: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """What placement sees: the newest reports plus what is on the way, a value for each row."""

    replica_ids: Sequence[str]
    may_serve: Bools
    """Whether the replica may be chosen at all."""
    is_late: Bools
    """Whether its report is older than it should be."""
    block_size: Floats
    num_blocks: Floats
    num_available_blocks: Floats
    """Free or evictable, less what queued prompts and requests on the way will take."""
    num_active: Floats
    """Sequences running, waiting or on the way."""
    num_free_seats: Floats
    """Sequences that may run beside these."""
    num_queued_prefill_tokens: Floats
    num_own_requests: Floats
    """Requests that this process placed there and that have not ended."""
    constant_s: Floats
    """Of the engine's fit of a step's seconds, as are the two that follow; 0: not learned yet."""
    seq_s: Floats
    prefill_token_s: Floats
    num_cached_blocks: Floats
    """Of the request's prompt, as far as is known."""
    num_session_tokens: Floats
    """Of the request's prompt, as is hoped where the last turn of its session was."""


@dataclass(slots=True)
class _Columns:
    """Rows as the reports and the ledger have them; see `FleetView` for what they are."""

    num_rows: int
    numbers: Floats = field(init=False)
    """[9, num_rows]: see `Fleet.report`."""
    loads: Floats = field(init=False)
    """[4, num_rows]: see `Fleet.load`."""
    is_serving: Bools = field(init=False)
    arrived_s: Floats = field(init=False)
    usual_gap_s: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = np.zeros((9, self.num_rows))
        self.numbers[:2] = 1.0  # an empty row is masked, and must not divide by zero
        self.loads = np.zeros((4, self.num_rows))
        self.is_serving = np.zeros(self.num_rows, np.bool_)
        self.arrived_s = np.full(self.num_rows, -math.inf)
        self.usual_gap_s = np.zeros(self.num_rows)

    def doubled(self) -> "_Columns":
        """Return the same with as many empty rows again."""
        wider = _Columns(2 * self.num_rows)
        for name in ("numbers", "loads", "is_serving", "arrived_s", "usual_gap_s"):
            getattr(wider, name)[..., : self.num_rows] = getattr(self, name)
        return wider


class Fleet:
    """The rows. Written on every report and placement, read on every placement."""

    def __init__(self) -> None:
        self._columns = _Columns(_FIRST_ROWS)
        self._row_of: dict[str, int] = {}
        self._ids = [""] * _FIRST_ROWS
        self._free_rows = list(range(_FIRST_ROWS - 1, -1, -1))

    @property
    def num_rows(self) -> int:
        """Rows in all, empty ones included."""
        return self._columns.num_rows

    def row(self, replica_id: str) -> int:
        """Return a replica's row; it gets one if it has none."""
        row = self._row_of.get(replica_id)
        if row is None:
            if not self._free_rows:
                self._free_rows = list(range(2 * self.num_rows - 1, self.num_rows - 1, -1))
                self._ids += [""] * self.num_rows
                self._columns = self._columns.doubled()
            row = self._row_of[replica_id] = self._free_rows.pop()
            self._ids[row] = replica_id
        return row

    def drop(self, replica_id: str) -> None:
        """Forget a replica; its row goes to another one."""
        row = self._row_of.pop(replica_id, None)
        if row is not None:
            self._ids[row] = ""
            self._free_rows.append(row)
            blank = _Columns(1)
            columns = self._columns
            columns.numbers[:, row] = blank.numbers[:, 0]
            columns.loads[:, row] = 0.0
            columns.is_serving[row] = False
            columns.arrived_s[row] = -math.inf
            columns.usual_gap_s[row] = 0.0

    def report(self, replica_id: str, engine: EngineSnapshot, now_s: float) -> None:
        """Take a newer snapshot of a replica."""
        row, columns = self.row(replica_id), self._columns
        # A queued prompt holds no block yet, but will before anything placed after it does.
        queued = math.ceil(engine.num_queued_prefill_tokens / engine.block_size)
        queued += engine.num_waiting
        columns.numbers[:, row] = (
            engine.block_size,
            engine.num_blocks,
            engine.num_usable_blocks - queued,
            engine.num_running + engine.num_waiting,
            engine.num_queued_prefill_tokens,
            engine.max_num_seqs or math.inf,
            *engine.step_time_s,
        )
        columns.is_serving[row] = engine.state is EngineState.SERVING
        before_s = columns.arrived_s.item(row)
        if math.isfinite(before_s):
            usual_s = _GAP_DECAY * columns.usual_gap_s.item(row)
            columns.usual_gap_s[row] = max(now_s - before_s, usual_s)
        columns.arrived_s[row] = now_s

    def load(self, replica_id: str, load: LedgerLoad) -> None:
        """Take what the ledger has for a replica now."""
        self._columns.loads[:, self.row(replica_id)] = (
            load.num_blocks,
            load.num_seqs,
            load.num_prefill_tokens,
            load.num_requests,
        )

    def disconnect(self, replica_id: str) -> None:
        """Choose a replica no more until its next report."""
        row = self._row_of.get(replica_id)
        if row is not None:
            self._columns.is_serving[row] = False

    def view(
        self,
        now_s: float,
        num_cached_blocks: NDArray[Any],
        among: Container[str] | None = None,
        *,
        session_replica: str = "",
        num_session_tokens: int = 0,
    ) -> FleetView:
        """Return what placement sees.

        Args:
            now_s: on the clock of `report`.
            num_cached_blocks: of the request's prompt, [num_rows].
            among: replicas that may be chosen; None: all.
            session_replica: has served the last turn of the request's session.
            num_session_tokens: of that turn.
        """
        session_tokens = np.zeros(self.num_rows)
        if (session_row := self._row_of.get(session_replica)) is not None:
            session_tokens[session_row] = num_session_tokens
        columns = self._columns
        block_size, num_blocks, unclaimed, active, queued, seats, *step_time = columns.numbers
        load_blocks, load_seqs, load_tokens, own = columns.loads
        may_serve = columns.is_serving
        if among is not None:
            allowed = np.fromiter((key in among for key in self._ids), np.bool_, len(self._ids))
            may_serve = may_serve & allowed
        return FleetView(
            replica_ids=self._ids,
            may_serve=may_serve,
            is_late=now_s - columns.arrived_s > MAX_AGE_S + 2 * columns.usual_gap_s,
            block_size=block_size,
            num_blocks=num_blocks,
            num_available_blocks=unclaimed - load_blocks,
            num_active=active + load_seqs,
            num_free_seats=seats - active - load_seqs,
            num_queued_prefill_tokens=queued + load_tokens,
            num_own_requests=own,
            constant_s=step_time[0],
            seq_s=step_time[1],
            prefill_token_s=step_time[2],
            num_cached_blocks=num_cached_blocks,
            num_session_tokens=session_tokens,
        )
