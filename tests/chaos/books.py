"""What frontends say of their replicas and requests: whether all is well, and what is left.

Pure: reads the answers to /status, one of each frontend.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

FRESH_S = 2.0
"""Age of the report of a replica that is well."""

Status = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Leaks:
    """What the idle cluster still holds."""

    num_used_blocks: int = 0
    num_requests: int = 0
    """That run or wait on replicas, or wait in frontends."""
    num_placed_requests: int = 0
    """Entries in the ledgers of all frontends."""
    problem: str = ""
    """Why nobody knows, or why the cluster is not whole."""

    def __bool__(self) -> bool:
        return self != Leaks()


def missing_in(statuses: Sequence[Status], *, num_frontends: int, num_replicas: int) -> str:
    """Which frontend does not answer, or does not hear from which replica; empty: all is well."""
    if len(statuses) != num_frontends:
        return f"{len(statuses)} of {num_frontends} frontends answer"
    for model in _models(statuses):
        num_well = sum(map(_is_well, model["replicas"]))
        num_known = len(model["replicas"])
        if not num_well == num_known == num_replicas:
            return f"a frontend knows {num_known} replicas and hears from {num_well}"
    return ""


def leaks(statuses: Sequence[Status], *, num_frontends: int, problem: str = "") -> Leaks:
    """Add up what is left; blocks and requests of replicas as the frontend knows that sees most."""
    if len(statuses) != num_frontends:
        problem = f"{problem} {len(statuses)} of {num_frontends} frontends answer".strip()
    models = list(_models(statuses))
    admissions = [model["admission"] for model in models]
    return Leaks(
        num_used_blocks=max((sum(map(_num_used_blocks, m["replicas"])) for m in models), default=0),
        num_requests=max((sum(map(_num_requests, m["replicas"])) for m in models), default=0)
        + sum(int(admission["num_held_requests"]) for admission in admissions),
        num_placed_requests=sum(int(a["num_placed_requests"]) for a in admissions),
        problem=problem,
    )


def _models(statuses: Sequence[Status]) -> Iterator[dict[str, Any]]:
    for status in statuses:
        [model] = status["models"]
        yield model


def _is_well(replica: dict[str, Any]) -> bool:
    is_serving = replica["connected"] and replica["state"] == "serving"
    return bool(is_serving and replica["age_s"] < FRESH_S)


def _num_used_blocks(replica: dict[str, Any]) -> int:
    names = ("num_blocks", "num_free_blocks", "num_evictable_blocks")
    num_blocks, num_free, num_evictable = (int(replica[name]) for name in names)
    return num_blocks - num_free - num_evictable


def _num_requests(replica: dict[str, Any]) -> int:
    return int(replica["num_running"]) + int(replica["num_waiting"])
