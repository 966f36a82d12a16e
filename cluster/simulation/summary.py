"""What a run is judged by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import stdev
from typing import Any

from cluster.simulation.frontend import Outcome
from cluster.simulation.scaler import ScalingRecord
from engine.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Objective:
    """What a client is content with."""

    ttft_s: float = 5.0
    tpot_s: float = 0.08


@dataclass(frozen=True, slots=True)
class Distribution:
    """Seconds of all requests."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Distribution":
        """Summarise values, of which there must be some."""
        ordered = sorted(values)
        at = (ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in _SHARES)
        return cls(sum(ordered) / len(ordered), *at)


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy's run of a trace."""

    num_requests: int
    goodput: float
    """Share of the requests that met both objectives; one that failed met none."""
    ttft_s: Distribution
    tpot_s: Distribution
    cached: float
    """Share of the prompt tokens that came from prefix caches."""
    num_moved: int
    """Requests that were placed more than once."""
    num_failed: int
    """Requests that nobody could serve."""
    imbalance: float
    """Requests of the busiest replica over the mean of all that had any."""
    duration_s: float
    """Of the simulated time, to the end of the last request."""
    tenant_ttft_s: Mapping[str, Distribution]
    """Of each tenant, where the trace knows any."""
    replica_s: float = 0.0
    """Seconds that replicas were there, starting and draining ones included."""
    num_direction_changes: int = 0
    """Times that a removal of replicas followed an addition, or the other way round."""


_SHARES = (0.5, 0.9, 0.95, 0.99)
_MIN_RUNS = 2
_STUDENT_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
"""By the number of values, two-sided, 95 %."""
_LAST_STUDENT_T = 2.262


def summarise(
    outcomes: Sequence[Outcome], objective: Objective, record: ScalingRecord | None = None
) -> Summary:
    """Summarise a run, with what its replicas cost where that is known.

    Raises InvalidConfig when nobody could serve any of its requests.
    """
    num_requests, num_moved = len(outcomes), sum(o.num_placements > 1 for o in outcomes)
    outcomes = [outcome for outcome in outcomes if not outcome.has_failed]
    if not outcomes:
        raise InvalidConfig(
            "No request of the trace could be served.",
            "Give the replicas more blocks: prompt and output must fit.",
        )
    ttft: list[float] = []
    tpot: list[float] = []
    num_good = 0
    of_tenant: dict[str, list[float]] = {}
    of_replica: dict[str, int] = {}
    for outcome in outcomes:
        assert outcome.first_s is not None, "it has ended"
        assert outcome.last_s is not None, "it has ended"
        request = outcome.request
        ttft.append(outcome.first_s - request.arrival_s)
        # The first token is no gap between two.
        num_gaps = max(1, request.num_output_tokens - 1)
        tpot.append((outcome.last_s - outcome.first_s) / num_gaps)
        if request.tenant:
            of_tenant.setdefault(request.tenant, []).append(ttft[-1])
        num_good += ttft[-1] <= objective.ttft_s and tpot[-1] <= objective.tpot_s
        of_replica[outcome.replica_id] = of_replica.get(outcome.replica_id, 0) + 1
    num_input = sum(outcome.request.num_input_tokens for outcome in outcomes)
    return Summary(
        num_requests=num_requests,
        goodput=num_good / num_requests,
        ttft_s=Distribution.of(ttft),
        tpot_s=Distribution.of(tpot),
        cached=sum(outcome.num_cached_tokens for outcome in outcomes) / num_input,
        num_moved=num_moved,
        num_failed=num_requests - len(outcomes),
        imbalance=max(of_replica.values()) * len(of_replica) / len(outcomes),
        duration_s=max(outcome.last_s or 0.0 for outcome in outcomes),
        tenant_ttft_s={
            tenant: Distribution.of(seconds) for tenant, seconds in sorted(of_tenant.items())
        },
        replica_s=record.replica_s if record else 0.0,
        num_direction_changes=record.num_direction_changes if record else 0,
    )


def combined(summaries: Sequence[Summary]) -> Summary:
    """Return the means over several runs of one policy, tenants left out."""
    rows = [asdict(replace(summary, tenant_ttft_s={})) for summary in summaries]
    means = _means(rows)
    for name in ("ttft_s", "tpot_s"):
        means[name] = Distribution(**means[name])
    for name in ("num_requests", "num_moved", "num_failed", "num_direction_changes"):
        means[name] = sum(row[name] for row in rows)
    return Summary(**means)


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of a mean (Student's t); 0 for a single value."""
    if len(values) < _MIN_RUNS:
        return 0.0
    factor = _STUDENT_T.get(len(values), _LAST_STUDENT_T)
    return factor * stdev(values) / math.sqrt(len(values))


def as_json(runs: Mapping[str, Sequence[Summary]]) -> dict[str, Any]:
    """Return the runs of each policy as `pageray simulate --json` prints them."""
    policies = {}
    for name, summaries in runs.items():
        values = asdict(summaries[0] if len(summaries) == 1 else combined(summaries))
        values["num_runs"] = len(summaries)
        values["goodput_half_interval"] = half_interval([run.goodput for run in summaries])
        policies[name] = values
    return {"policies": policies}


def _means(rows: Sequence[Any]) -> Any:
    first = rows[0]
    if isinstance(first, dict):
        return {name: _means([row[name] for row in rows]) for name in first}
    return sum(rows) / len(rows)
