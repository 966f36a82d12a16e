"""What a run is judged by."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.simulation.frontend import Outcome
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


_SHARES = (0.5, 0.9, 0.99)


def summarise(outcomes: Sequence[Outcome], objective: Objective) -> Summary:
    """Summarise a run. Raises InvalidConfig when nobody could serve any of its requests."""
    num_requests, num_moved = len(outcomes), sum(o.num_placements > 1 for o in outcomes)
    outcomes = [outcome for outcome in outcomes if not outcome.has_failed]
    if not outcomes:
        raise InvalidConfig(
            "No request of the trace could be served.",
            "Give the replicas more blocks: prompt and output must fit.",
        )
    ttft, tpot, num_good = [], [], 0
    of_replica: dict[str, int] = {}
    for outcome in outcomes:
        assert outcome.first_s is not None, "it has ended"
        assert outcome.last_s is not None, "it has ended"
        request = outcome.request
        ttft.append(outcome.first_s - request.arrival_s)
        # The first token is no gap between two.
        num_gaps = max(1, request.num_output_tokens - 1)
        tpot.append((outcome.last_s - outcome.first_s) / num_gaps)
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
    )


def as_json(summaries: dict[str, Summary]) -> dict[str, Any]:
    """Return summaries of policies as `pageray simulate --json` prints them."""
    return {"policies": {name: asdict(summary) for name, summary in summaries.items()}}
