"""Adds and removes simulated replicas by the policy that serves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

from cluster.autoscaling.decision import ScalingDecision
from cluster.autoscaling.demand import ReplicaDemand, ScalingInput, metrics_of
from cluster.autoscaling.history import ScalingState
from cluster.autoscaling.policy import ScalingSettings, decide
from cluster.messages import Demand
from cluster.simulation.events import Events
from cluster.simulation.replica import ReplicaModel, SimulatedReplica


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many replicas there may be, and how one comes."""

    min_replicas: int
    max_replicas: int
    model: ReplicaModel = field(default_factory=ReplicaModel)
    """Of those that are added."""
    cold_start_s: float = 60.0
    """From the order to the first request."""
    ttft_objective_s: float = 5.0
    settings: ScalingSettings = field(default_factory=ScalingSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRecord:
    """What the replicas of a run cost, and how they came and went."""

    replica_s: float
    """Seconds that replicas were there, starting and draining ones included."""
    peak: int
    """Most replicas that were wanted at once."""
    changes: tuple[ScalingDecision, ...] = ()
    change_times_s: tuple[float, ...] = ()

    @property
    def num_direction_changes(self) -> int:
        """Times that a removal followed an addition, or the other way round."""
        is_rise = [one.num_target > one.num_before for one in self.changes]
        return sum(a != b for a, b in pairwise(is_rise))


@dataclass(slots=True)
class _Life:
    """When a replica was there."""

    ordered_s: float
    gone_s: float = 0.0
    """0: it is still there."""


class Scaler:
    """Looks at the replicas every now and then, and orders or drains some."""

    def __init__(
        self,
        scaling: Scaling,
        events: Events,
        replicas: Mapping[str, SimulatedReplica],
        *,
        demand: Callable[[], Demand],
        start: Callable[[str, ReplicaModel], None],
        drain: Callable[[str], None],
        stop: Callable[[str], None],
    ) -> None:
        """Rule over what `replicas` holds, which others change as they are told here.

        Args:
            scaling: bounds and periods.
            events: the clock.
            replicas: those that serve or drain.
            demand: what the frontends hold.
            start: lets a replica serve.
            drain: gives a replica nothing new.
            stop: a replica that drained has nothing left to do.
        """
        self._scaling = scaling
        self._events = events
        self._replicas = replicas
        self._demand = demand
        self._start = start
        self._drain = drain
        self._stop = stop
        self._state: ScalingState | None = None
        self._num_target = len(replicas)
        self._starting: list[str] = []
        self._draining: list[str] = []
        self._lives = {replica_id: _Life(events.now) for replica_id in replicas}
        self._changes: list[tuple[float, ScalingDecision]] = []
        self._peak = self._num_target

    def evaluate(self) -> None:
        """Decide, and do what was decided."""
        for replica_id in [key for key in self._draining if self._is_idle(key)]:
            self._draining.remove(replica_id)
            self._gone(replica_id)
            self._stop(replica_id)
        for replica_id, life in self._lives.items():
            is_there = replica_id in self._replicas or replica_id in self._starting
            if not life.gone_s and not is_there:
                self._gone(replica_id)  # it has died
        decision, self._state = decide(self._given(), self._scaling.settings, self._state)
        if decision.changes:
            self._changes.append((self._events.now, decision))
        self._num_target = decision.num_target
        self._peak = max(self._peak, self._num_target)
        self._follow()

    def record(self) -> ScalingRecord:
        """Return what there was until now."""
        now = self._events.now
        lives = self._lives.values()
        return ScalingRecord(
            replica_s=sum((one.gone_s or now) - one.ordered_s for one in lives),
            peak=self._peak,
            changes=tuple(decision for _, decision in self._changes),
            change_times_s=tuple(time_s for time_s, _ in self._changes),
        )

    def _serving(self) -> list[str]:
        return [key for key in self._replicas if key not in self._draining]

    def _given(self) -> ScalingInput:
        held = self._demand()
        serving = self._serving()
        return ScalingInput(
            now_s=self._events.now,
            replicas={key: self._told(self._replicas[key], held) for key in serving},
            num_serving=len(serving),
            num_target=self._num_target,
            min_replicas=self._scaling.min_replicas,
            max_replicas=self._scaling.max_replicas,
            # Without replicas frontends ask Serve for one, which then has a call that waits.
            num_queued_requests=0 if serving else held.num_held_requests,
        )

    def _told(self, replica: SimulatedReplica, held: Demand) -> ReplicaDemand:
        metrics = metrics_of(replica.snapshot(), cold_start_s=self._scaling.cold_start_s)
        return replace(
            ReplicaDemand.from_metrics(metrics),
            num_held_requests=held.num_held_requests,
            num_held_tokens=held.num_held_tokens,
            ttft_attainment=held.ttft_attainment,
        )

    def _follow(self) -> None:
        """Order what is missing, also in place of what has died, and let go what is too much."""
        while len(self._serving()) + len(self._starting) < self._num_target:
            replica_id = f"replica-{len(self._lives)}"
            self._lives[replica_id] = _Life(self._events.now)
            self._starting.append(replica_id)
            self._events.after(self._scaling.cold_start_s, partial(self._begin, replica_id))
        while len(self._serving()) + len(self._starting) > self._num_target:
            if self._starting:
                self._gone(self._starting.pop())
            else:
                emptiest = min(self._serving(), key=self._num_used_blocks)
                self._draining.append(emptiest)
                self._drain(emptiest)

    def _begin(self, replica_id: str) -> None:
        if replica_id in self._starting:
            self._starting.remove(replica_id)
            self._start(replica_id, self._scaling.model)

    def _gone(self, replica_id: str) -> None:
        self._lives[replica_id].gone_s = self._events.now

    def _num_used_blocks(self, replica_id: str) -> int:
        snapshot = self._replicas[replica_id].snapshot()
        return snapshot.num_blocks - snapshot.num_usable_blocks

    def _is_idle(self, replica_id: str) -> bool:
        if replica_id not in self._replicas:
            return True
        snapshot = self._replicas[replica_id].snapshot()
        return not (snapshot.num_running or snapshot.num_waiting)
