"""Other traces made of a trace: a part of it, a faster one, many at once, a burst, a flood."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from cluster.simulation.trace import TraceRequest
from engine.errors import InvalidConfig

FLOOD_TENANT: Final = "flood"


def scaled(requests: Iterable[TraceRequest], rate: float) -> list[TraceRequest]:
    """Return the same requests, arriving `rate` times as fast."""
    return [replace(request, arrival_s=request.arrival_s / rate) for request in requests]


def shrunk(requests: Iterable[TraceRequest], factor: int) -> list[TraceRequest]:
    """Return the same requests, so many times as short."""
    return [
        replace(
            request,
            num_input_tokens=max(1, request.num_input_tokens // factor),
            num_output_tokens=max(1, request.num_output_tokens // factor),
            num_prefix_tokens=max(1, request.num_prefix_tokens // factor),
        )
        for request in requests
    ]


def window(requests: Sequence[TraceRequest], seconds: float, seed: int) -> list[TraceRequest]:
    """Return so many seconds of a trace, from 0 on: its first for seed 0, else some of it.

    Raises InvalidConfig when there is no request in them.
    """
    start_s = 0.0
    if seed:
        last_s = max(requests[-1].arrival_s - seconds, 0.0)
        start_s = random.Random(seed).uniform(0.0, last_s)  # noqa: S311
    end_s = start_s + seconds
    chosen = [request for request in requests if start_s <= request.arrival_s < end_s]
    if not chosen:
        raise InvalidConfig("No request is left of the trace.", "Use more seconds of it.")
    return [replace(request, arrival_s=request.arrival_s - start_s) for request in chosen]


def multiplied(requests: Sequence[TraceRequest], num: int, seconds: float) -> list[TraceRequest]:
    """Return so many copies of a trace of so many seconds at once: as long, but with as many times
    the requests. Each begins elsewhere, goes round, and its prompts are those of nobody else."""
    copies = [
        replace(
            request,
            arrival_s=(request.arrival_s + seconds * copy / num) % seconds,
            copy=copy,
        )
        for copy in range(num)
        for request in requests
    ]
    copies.sort(key=lambda request: request.arrival_s)
    return [replace(request, number=i) for i, request in enumerate(copies)] if num > 1 else copies


def with_burst(
    requests: Sequence[TraceRequest], start_s: float, seconds: float, factor: float
) -> list[TraceRequest]:
    """Let what comes in `factor` times so many seconds from a time on come within them."""
    end_s = start_s + seconds * factor

    def moved(arrival_s: float) -> float:
        if start_s <= arrival_s < end_s:
            return start_s + (arrival_s - start_s) / factor
        return arrival_s

    return [replace(request, arrival_s=moved(request.arrival_s)) for request in requests]


def with_flood(requests: Sequence[TraceRequest], share: float) -> list[TraceRequest]:
    """Add a tenant who sends this share of all requests: each like one of the others', which come
    as before."""
    rng = random.Random(len(requests))  # noqa: S311
    num_added = round(len(requests) * share / (1 - share))
    last_s = requests[-1].arrival_s
    first = max(request.number for request in requests) + 1
    added = [
        replace(
            rng.choice(requests),
            number=first + i,
            arrival_s=rng.uniform(0.0, last_s),
            tenant=FLOOD_TENANT,
            prefix_ids=(),
        )
        for i in range(num_added)
    ]
    return sorted([*requests, *added], key=lambda request: request.arrival_s)
