"""Runs a trace against a cluster of simulated replicas."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from cluster.admission_limits import AdmissionLimits
from cluster.board import Board
from cluster.placement import PlacementPolicy
from cluster.simulation.events import Events
from cluster.simulation.frontend import Frontend, Outcome
from cluster.simulation.replica import ReplicaModel, SimulatedReplica, StepResult
from cluster.simulation.reports import Reporting, Reports
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


def simulate(
    trace: Sequence[TraceRequest],
    scenario: Scenario,
    policy: PlacementPolicy,
    progress: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Return the outcome of every request, in the order of their ends.

    Args:
        trace: in order of arrival.
        scenario: the cluster.
        policy: places the requests.
        progress: told the number of requests that have ended.
    """
    run = _Run(len(trace), scenario, policy, progress)
    for request in trace:
        frontend = run.rng.choice(run.frontends)
        run.events.at(request.arrival_s, partial(frontend.take, request))
    run.events.run()
    return run.outcomes


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
        self._reports = Reports(scenario.reporting, self.events, self.rng, self._report)
        self.replicas = {
            f"replica-{i}": SimulatedReplica(f"replica-{i}", model, self.events, self._tell)
            for i, model in enumerate(scenario.replicas)
        }
        self._boards = [
            Board(policy=policy, clock=self.events.clock) for _ in range(scenario.num_frontends)
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
            )
            for i, board in enumerate(self._boards)
        ]
        self._set_members()
        for replica_id, replica in self.replicas.items():
            for board in self._boards:
                board.update(replica_id, replica.snapshot())
        self.events.after(HEARTBEAT_S, self._beat)
        for time_s, number in scenario.deaths:
            self.events.at(time_s, partial(self._kill, f"replica-{number}"))

    def _beat(self) -> None:
        """Let idle replicas speak, as long as anything is to come."""
        for replica in self.replicas.values():
            replica.beat()
        if len(self.outcomes) < self._num_requests:
            self.events.after(HEARTBEAT_S, self._beat)

    def _set_members(self) -> None:
        for board in self._boards:
            board.set_members({replica_id: {} for replica_id in self.replicas})

    def _tell(self, result: StepResult) -> None:
        self._reports.add(result)
        for frontend in self.frontends:
            self.events.after(self._scenario.network_s, partial(frontend.hear_tokens, result))

    def _report(self, results: Sequence[StepResult]) -> None:
        for frontend in self.frontends:
            self.events.after(self._scenario.network_s, partial(frontend.hear_reports, results))

    def _kill(self, replica_id: str) -> None:
        self.replicas.pop(replica_id).kill()
        self._set_members()
        for frontend in self.frontends:
            frontend.lose(replica_id)

    def _end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if self._progress is not None:
            self._progress(len(self.outcomes))
