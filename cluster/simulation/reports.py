"""How what replicas tell of themselves reaches the frontends: now and then, late, or not at all."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

from cluster.simulation.events import Events
from cluster.simulation.replica import Admissions, StepResult
from engine.output import StepOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """The way of the reports. Tokens come at once whatever it is."""

    period_s: float = 0.0
    """A frontend hears from a replica at least so often; 0: after every step."""
    with_tokens: bool = True
    """A step that has tokens for a frontend, or accepts a request of its, reports to it at once,
    as the frames of the token stream do. False: as where reports and tokens have different ways."""
    lost: float = 0.0
    """Share of the reports that never arrive. What they told of the cache and of requests comes
    with the next one."""
    late: float = 0.0
    """Share that arrives after later ones."""
    late_s: float = 0.5
    """By so much."""


@dataclass(slots=True)
class _Pending:
    """What a replica has not told yet."""

    results: list[StepResult] = field(default_factory=list)
    is_due: bool = False


class Reports:
    """Collects the results of steps for one frontend and hands them on as reports."""

    def __init__(
        self,
        reporting: Reporting,
        events: Events,
        rng: random.Random,
        deliver: Callable[[Sequence[StepResult]], None],
        is_for_us: Callable[[str], bool] = lambda _request_id: False,
    ) -> None:
        """Begin with nothing to tell; `is_for_us` knows the requests of the frontend."""
        self._reporting = reporting
        self._events = events
        self._rng = rng
        self._deliver = deliver
        self._is_for_us = is_for_us
        self._pending: dict[str, _Pending] = {}

    def add(self, result: StepResult) -> None:
        """A replica has something to tell."""
        pending = self._pending.setdefault(result.replica_id, _Pending())
        pending.results.append(result)
        if not self._reporting.period_s or self._comes_with_tokens(result):
            self._report(pending)
        elif not pending.is_due:
            pending.is_due = True
            self._events.after(self._reporting.period_s, partial(self._report_due, pending))

    def _comes_with_tokens(self, result: StepResult) -> bool:
        if not self._reporting.with_tokens:
            return False
        outputs, accepted = result.output.outputs, result.admissions.accepted
        told = chain((output.request_id for output in outputs), accepted)
        return any(map(self._is_for_us, told))

    def _report_due(self, pending: _Pending) -> None:
        pending.is_due = False
        if pending.results:  # else all went with tokens
            self._report(pending)

    def _report(self, pending: _Pending) -> None:
        reporting = self._reporting
        fate = self._rng.random() if reporting.lost or reporting.late else 1.0
        if fate < reporting.lost:
            return
        if fate < reporting.lost + reporting.late:
            stale = _snapshot_alone(pending.results[-1])
            self._events.after(reporting.late_s, partial(self._deliver, [stale]))
            return
        results, pending.results = pending.results, []
        self._deliver(results)


def _snapshot_alone(result: StepResult) -> StepResult:
    """Return what of a report may be overtaken; the rest must come in order."""
    return replace(result, output=StepOutput([], 0, 0), admissions=Admissions())
