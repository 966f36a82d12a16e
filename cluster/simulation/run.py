"""Runs a trace against a cluster of simulated replicas."""

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from cluster.admission_limits import AdmissionLimits
from cluster.board import Board
from cluster.messages import Demand
from cluster.placement import PlacementPolicy
from cluster.simulation.events import Events
from cluster.simulation.frontend import Frontend, Outcome
from cluster.simulation.replica import ReplicaModel, SimulatedReplica, StepResult
from cluster.simulation.reports import Reporting, Reports
from cluster.simulation.scaler import Scaler, Scaling, ScalingRecord
from cluster.simulation.trace import TraceRequest

HEARTBEAT_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A cluster and what happens to it."""

    replicas: Sequence[ReplicaModel]
    num_frontends: int = 1
    reporting: Reporting = field(default_factory=Reporting)
    network_s: float = 0.001
    """One way between frontend and replica."""
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    """Of each frontend's queue."""
    deaths: Sequence[tuple[float, int]] = field(default_factory=tuple)
    """Seconds and number of a replica that dies then."""
    seed: int = 0
    """Of whatever is left to chance: who sends to which frontend, which reports are lost."""
    scaling: Scaling | None = None
    """None: there are always as many; else `replicas` are those at the start."""


def simulate(
    trace: Sequence[TraceRequest],
    scenario: Scenario,
    policy: PlacementPolicy,
    progress: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Return the outcome of every request; see `simulate_scaling`."""
    return simulate_scaling(trace, scenario, policy, progress)[0]


def simulate_scaling(
    trace: Sequence[TraceRequest],
    scenario: Scenario,
    policy: PlacementPolicy,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Outcome], ScalingRecord]:
    """Return the outcome of every request, in the order of their ends, and what it took.

    Args:
        trace: in order of arrival.
        scenario: the cluster.
        policy: places the requests.
        progress: told the number of requests that have ended.
    """
    run = _Run(len(trace), scenario, policy, progress)
    takers = [run.rng.choice(run.frontends) for _ in trace]
    run.events.follow(
        (request.arrival_s, partial(frontend.take, request))
        for request, frontend in zip(trace, takers, strict=True)
    )
    with _no_collector():
        run.events.run()
    return run.outcomes, run.record()


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep the garbage collector away: nothing that ends is part of a circle, and to look through
    all that a thousand replicas hold, again and again, takes a fifth of a run."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Run:
    def __init__(
        self,
        num_requests: int,
        scenario: Scenario,
        policy: PlacementPolicy,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.events = Events()
        self.outcomes: list[Outcome] = []
        self._num_requests = num_requests
        self._scenario = scenario
        self._progress = progress
        self.rng = random.Random(scenario.seed)  # noqa: S311
        self._draining: set[str] = set()
        self.replicas = {
            f"replica-{i}": SimulatedReplica(f"replica-{i}", model, self.events, self._tell)
            for i, model in enumerate(scenario.replicas)
        }
        self._boards = [
            Board(policy=policy, clock=self.events.clock, rotation=self.rng.randrange(1 << 16))
            for _ in range(scenario.num_frontends)
        ]
        self.frontends = [
            Frontend(
                f"frontend-{i}",
                self.events,
                board,
                self.replicas,
                scenario.network_s,
                scenario.limits,
                self._end,
                scaling=scenario.scaling,
            )
            for i, board in enumerate(self._boards)
        ]
        self._reports = [
            Reports(
                scenario.reporting,
                self.events,
                self.rng,
                partial(self._report, frontend),
                frontend.has_placed,
            )
            for frontend in self.frontends
        ]
        self._set_members()
        for replica_id, replica in self.replicas.items():
            for board in self._boards:
                board.update(replica_id, replica.snapshot())
        self.events.after(HEARTBEAT_S, self._beat)
        self._scaler: Scaler | None = None
        if scenario.scaling is not None:
            self._scaler = Scaler(
                scenario.scaling,
                self.events,
                self.replicas,
                demand=self._demand,
                start=self._add,
                drain=self._drain,
                stop=self._remove,
            )
            self._evaluate(self._scaler, scenario.scaling.settings.evaluation_period_s)
        for time_s, number in scenario.deaths:
            self.events.at(time_s, partial(self._kill, f"replica-{number}"))

    def _beat(self) -> None:
        """Let idle replicas speak, as long as anything is to come."""
        for replica in self.replicas.values():
            replica.beat()
        if len(self.outcomes) < self._num_requests:
            self.events.after(HEARTBEAT_S, self._beat)

    def _evaluate(self, scaler: Scaler, period_s: float) -> None:
        scaler.evaluate()
        if len(self.outcomes) < self._num_requests:
            self.events.after(period_s, partial(self._evaluate, scaler, period_s))

    def _demand(self) -> Demand:
        held = [frontend.demand() for frontend in self.frontends]
        return Demand(
            sum(one.num_held_requests for one in held),
            sum(one.num_held_tokens for one in held),
            min(one.ttft_attainment for one in held),
        )

    def _add(self, replica_id: str, model: ReplicaModel) -> None:
        replica = SimulatedReplica(replica_id, model, self.events, self._tell)
        self.replicas[replica_id] = replica
        self._set_members()
        replica.beat()

    def _drain(self, replica_id: str) -> None:
        self._draining.add(replica_id)
        self._set_members()

    def _remove(self, replica_id: str) -> None:
        self._draining.discard(replica_id)
        self.replicas.pop(replica_id, None)

    def _set_members(self) -> None:
        members: dict[str, dict[str, Any]] = {
            replica_id: {} for replica_id in self.replicas if replica_id not in self._draining
        }
        for board in self._boards:
            board.set_members(members)

    def _tell(self, result: StepResult) -> None:
        if result.has_news:
            for frontend in self.frontends:
                self.events.after(self._scenario.network_s, partial(frontend.hear_tokens, result))
        for reports in self._reports:
            reports.add(result)

    def _report(self, frontend: Frontend, results: Sequence[StepResult]) -> None:
        self.events.after(self._scenario.network_s, partial(frontend.hear_reports, results))

    def _kill(self, replica_id: str) -> None:
        replica = self.replicas.pop(replica_id, None)
        if replica is None:
            return  # it has been scaled away before
        replica.kill()
        self._set_members()
        for frontend in self.frontends:
            frontend.lose(replica_id)

    def record(self) -> ScalingRecord:
        """Return what the replicas of the run cost until now."""
        if self._scaler is not None:
            return self._scaler.record()
        num_replicas = len(self._scenario.replicas)
        return ScalingRecord(replica_s=num_replicas * self.events.now, peak=num_replicas)

    def _end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if self._progress is not None:
            self._progress(len(self.outcomes))
