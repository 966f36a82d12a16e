"""The start of a replica as spans: one for the whole, below it one for each phase."""

import time
from collections.abc import Mapping

from opentelemetry.trace import Tracer, set_span_in_context


def trace_start(
    tracer: Tracer, model_name: str, phase_times_s: Mapping[str, float], elapsed_s: float
) -> None:
    """Trace a start that took `elapsed_s` and has just ended, of phases that followed each other.

    What comes before the first of them, Ray's own start of the ranks, is the rest of the time.
    """
    now_ns = time.time_ns()
    root = tracer.start_span(
        f"start {model_name}",
        start_time=now_ns - _ns(elapsed_s),
        attributes={"gen_ai.request.model": model_name},
    )
    parent = set_span_in_context(root)
    began_ns = now_ns - _ns(elapsed_s)
    phases = {"start ranks": max(0.0, elapsed_s - sum(phase_times_s.values())), **phase_times_s}
    for name, seconds in phases.items():
        span = tracer.start_span(name, parent, start_time=began_ns)
        began_ns += _ns(seconds)
        span.end(began_ns)
    root.end(now_ns)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
