"""Requests that no replica has room for yet, in the order in which they get some.

A request is bound to a replica when one has room for it, and not before. Within a priority class
tenants take turns (engine/fair_share.py); of one tenant the first to come goes first. One that
finds no room is passed only so often by others that do. Pure: the clock is handed in.
"""

import bisect
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from cluster.active_tenants import ActiveTenants
from cluster.admission_limits import AdmissionLimits
from cluster.board import Board
from cluster.request_need import WATERMARK, RequestNeed
from cluster.served_rate import ServedRate
from cluster.snapshot import AdmissionSnapshot
from engine.errors import Overloaded
from engine.fair_share import OUTPUT_COST, FairShare

LOOK_S: Final = 0.005
"""After news the queue is looked through so much later, and not for every piece of it."""
RESERVE: Final = 0.1
"""Share of a replica that a tenant leaves alone while another one of late had less of it."""
_MAX_OVERTAKES: Final = 64
_MAX_FAILURES: Final = 4
"""Requests that may find no room before the rest has to wait too: each look takes a while."""
_RETRY_SPREAD: Final = (0.8, 1.2)
"""So that those who were refused together do not come back together."""


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A request in the queue."""

    need: RequestNeed
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    arrived_s: float
    """When its client sent it, on the queue's clock."""
    deadline_s: float = math.inf
    """When its client gives up, on the same clock."""
    was_placed: bool = False
    """Whether it has lost a replica: it was taken in for good."""
    has_begun: bool = False
    """Whether its client has tokens: it does not wait for room, any engine's queue will do."""
    entered_s: float = field(default=0.0, init=False)
    """When it came to the queue: later, where it had a replica before that was lost."""
    number: int = field(default=0, init=False)
    num_overtakes: int = field(default=0, init=False)

    @property
    def place(self) -> tuple[int, float, int]:
        """Order among its tenant's: lower first."""
        return self.priority, self.arrived_s, self.number

    @property
    def num_missing_tokens(self) -> int:
        """What serving it takes, as far as is known before it is placed."""
        return self.need.num_prompt_tokens


class AdmissionQueue:
    """The queue of one frontend and one model."""

    def __init__(
        self,
        board: Board,
        limits: AdmissionLimits,
        clock: Callable[[], float],
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._board = board
        self._limits = limits
        self._clock = clock
        self._uniform = uniform
        self._fair_share = FairShare()
        self._active = ActiveTenants(clock)
        self._rate = ServedRate(clock)
        self._absent_s = -math.inf
        """When it was seen last that there is no replica."""
        self._waiting: dict[str, Ticket] = {}
        self._queues: dict[str, list[Ticket]] = {}
        self._placed: dict[str, Ticket] = {}
        self._next_number = 0
        self._num_refused = 0
        self.num_tokens = 0
        """Prompt tokens of all that wait."""

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, ticket: Ticket) -> str | None:
        """Take a request in; return its replica if it can start at once, None if it waits.

        Raises Overloaded when too much waits already, or it would wait for longer than it may.
        """
        self._active.note(ticket.tenant)
        self._fair_share.enter(ticket.tenant)
        is_first = ticket.has_begun or not self._waiting
        if is_first and (replica_id := self._place(ticket)) is not None:
            self._start(ticket)
            return replica_id
        self._note_absence()
        try:
            if not ticket.was_placed:
                self._check(ticket)
        except Overloaded:
            self._fair_share.leave(ticket.tenant)
            raise
        if not self._waiting:
            self._rate.start()
        ticket.entered_s = self._clock()
        ticket.number = self._next_number
        self._next_number += 1
        self._waiting[ticket.need.request_id] = ticket
        queue = self._queues.setdefault(ticket.tenant, [])
        bisect.insort(queue, ticket, key=lambda other: other.place)
        self.num_tokens += ticket.need.num_prompt_tokens
        return None

    def place_next(self) -> list[tuple[Ticket, str]]:
        """Place whom there is room for by now; return them with their replicas."""
        placed: list[tuple[Ticket, str]] = []
        overtaken: list[Ticket] = []
        for ticket in [each for each in self._waiting.values() if each.has_begun]:
            if (replica_id := self._place(ticket)) is not None:
                self._remove(ticket)
                self._start(ticket)
                placed.append((ticket, replica_id))
        queues = [list(queue) for queue in self._queues.values()]
        for ticket in self._fair_share.order(queues):
            replica_id = self._place(ticket)
            if replica_id is None:
                overtaken.append(ticket)
                if ticket.num_overtakes >= _MAX_OVERTAKES or len(overtaken) >= _MAX_FAILURES:
                    break
                continue
            self._remove(ticket)
            self._start(ticket)
            placed.append((ticket, replica_id))
            for other in overtaken:
                other.num_overtakes += 1
        return placed

    def give_up(self) -> list[Ticket]:
        """Take those out whose deadline has passed, or that have waited for as long as any may."""
        now, limits = self._clock(), self._limits
        self._note_absence()
        late = [
            ticket
            for ticket in self._waiting.values()
            if ticket.deadline_s <= now
            or (
                not ticket.was_placed
                and now - max(ticket.entered_s, self._absent_s) > limits.max_wait_s
            )
            or now - ticket.entered_s > limits.max_wait_s + limits.max_start_s
        ]
        for ticket in late:
            self._remove(ticket)
            self._fair_share.leave(ticket.tenant)
        return late

    def end(self, request_id: str, num_output_tokens: int = 0) -> None:
        """A request is over, whether it waited or ran; its blocks are free."""
        self._board.release(request_id)
        if (ticket := self._waiting.get(request_id)) is not None:
            self._remove(ticket)
            self._fair_share.leave(ticket.tenant)
        elif (ticket := self._placed.pop(request_id, None)) is not None:
            self._fair_share.charge(ticket, OUTPUT_COST * num_output_tokens)
            self._fair_share.leave(ticket.tenant)
            self._rate.add(ticket.need.num_prompt_tokens)

    @property
    def predicted_wait_s(self) -> float | None:
        """Seconds until a request that came now would be placed; None: nothing to judge by."""
        if not self._waiting:
            return 0.0
        rate = self._rate.per_s
        return self.num_tokens / rate if rate else None

    def snapshot(self) -> AdmissionSnapshot:
        """How it is at present."""
        return AdmissionSnapshot(
            num_held_requests=len(self._waiting),
            num_held_tokens=self.num_tokens,
            predicted_wait_s=self.predicted_wait_s,
            num_placed_requests=self._board.num_requests,
            num_placements=self._board.num_by_reason(),
            num_refused=self._num_refused,
        )

    def overloaded(self, cause: str) -> Overloaded:
        """Refuse a request, with the time after which it may be worth to try again."""
        self._num_refused += 1
        wait_s = self.predicted_wait_s
        # Half of the queue is a guess, where nobody has left yet to measure by. All that wait now
        # have gone one way or the other by then, however slowly they go.
        most_s = self._limits.max_wait_s
        wait_s = most_s / 2 if wait_s is None else min(wait_s, most_s)
        retry_after_s = max(1.0, wait_s * self._uniform(*_RETRY_SPREAD))
        fix = "Try again later, or serve with more replicas."
        return Overloaded(cause, fix, math.ceil(retry_after_s))

    def _note_absence(self) -> None:
        """Waiting for a first replica to start is no sign of overload."""
        if not self._board.has_members:
            self._absent_s = self._clock()
            self._rate.forget()

    def _check(self, ticket: Ticket) -> None:
        limits = self._limits
        if len(self._waiting) >= limits.max_requests:
            raise self.overloaded(f"{len(self._waiting)} requests wait already.")
        if self.num_tokens + ticket.need.num_prompt_tokens > limits.max_tokens:
            raise self.overloaded(f"requests of {self.num_tokens} tokens wait already.")
        wait_s, now = self._expected_wait_s(ticket), self._clock()
        # One that is late already is taken in, to hear of its deadline with the next look.
        if wait_s is None or ticket.deadline_s <= now:
            return
        patience_s = min(limits.max_wait_s, ticket.deadline_s - now)
        if wait_s > patience_s:
            raise self.overloaded(
                f"the request would wait for {wait_s:.0f} s, and may wait for {patience_s:.0f} s."
            )

    def _expected_wait_s(self, ticket: Ticket) -> float | None:
        """Seconds until this one would be placed, whoever waits behind it; None: not known."""
        rate = self._rate.per_s
        if not rate:
            return None
        ahead: Counter[str] = Counter()
        for other in self._waiting.values():
            if other.priority <= ticket.priority:
                ahead[other.tenant] += other.need.num_prompt_tokens
        # Tenants take turns: each waits for its own requests, as many times as there are tenants.
        num_tenants = len(ahead.keys() | {ticket.tenant})
        return min(ahead.total(), num_tenants * ahead[ticket.tenant]) / rate

    def _place(self, ticket: Ticket) -> str | None:
        tenant = ticket.tenant
        is_behind = self._fair_share.is_behind(tenant, self._active.others(tenant))
        need = replace(ticket.need, spare_share=WATERMARK if is_behind else RESERVE)
        return self._board.choose(need, may_queue=ticket.has_begun)

    def _start(self, ticket: Ticket) -> None:
        if not ticket.was_placed:  # its tenant has paid for it already
            self._fair_share.charge(ticket, ticket.need.num_prompt_tokens)
        self._placed[ticket.need.request_id] = ticket

    def _remove(self, ticket: Ticket) -> None:
        del self._waiting[ticket.need.request_id]
        queue = self._queues[ticket.tenant]
        queue.remove(ticket)
        if not queue:
            del self._queues[ticket.tenant]
        self.num_tokens -= ticket.need.num_prompt_tokens
        if not self._waiting:
            self._rate.stop()
