"""The start of a replica as spans: one for the whole, below it one for each phase."""

import time
from collections.abc import Mapping

from opentelemetry.trace import Tracer, set_span_in_context

from deployments.trace_export import TraceExport


def trace_start(
    export: TraceExport,
    instance_id: str,
    model_name: str,
    phase_times_s: Mapping[str, float],
    elapsed_s: float,
) -> None:
    """Export the start of a replica that has just come up; what it does then, frontends tell.

    Takes as long as the receiver does.
    """
    now_ns = time.time_ns()
    provider = export.open(instance_id)
    write_start(provider.get_tracer("pageray"), model_name, phase_times_s, elapsed_s, now_ns)
    provider.shutdown()


def write_start(
    tracer: Tracer,
    model_name: str,
    phase_times_s: Mapping[str, float],
    elapsed_s: float,
    ended_ns: int,
) -> None:
    """Write the spans of a start that took `elapsed_s` until then, of phases one after the other.

    What comes before the first of them, Ray's own start of the ranks, is the rest of the time.
    """
    began_ns = ended_ns - _ns(elapsed_s)
    root = tracer.start_span(
        f"start {model_name}",
        start_time=began_ns,
        attributes={"gen_ai.request.model": model_name},
    )
    parent = set_span_in_context(root)
    phases = {"start ranks": max(0.0, elapsed_s - sum(phase_times_s.values())), **phase_times_s}
    for name, seconds in phases.items():
        span = tracer.start_span(name, parent, start_time=began_ns)
        began_ns += _ns(seconds)
        span.end(began_ns)
    root.end(ended_ns)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
