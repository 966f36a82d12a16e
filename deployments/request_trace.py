"""What the span of a request says about it, and the spans below it.

    read -> route -> queue -> prefill -> decode, the last four once for every replica that had it

They are made when the request is over, of the times that were noted on the way, so a traced request
costs nothing while it runs. What happened in an engine is put on the frontend's clock: it begins
when the request was placed, and the way there and back lies in `decode`.

Attributes have the names of OpenTelemetry's conventions for generative AI, and the older ones
(usage.prompt_tokens, latency.*) that vLLM uses. No span holds text of a prompt or an answer.
"""

import time
from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode, Tracer, set_span_in_context

from cluster.request_times import AttemptTimes, RequestTimes
from deployments.completion import Completion
from engine.request import GenerateRequest

Attributes = dict[str, str | int | float | tuple[str, ...]]
SYSTEM: Final = "pageray"


class RequestTrace:
    """Writes the spans of requests."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def describe(self, span: Span, operation: str, model_name: str, completion: Completion) -> None:
        """Say in its span what became of a request, and put the spans of its stages below it."""
        if not span.is_recording():
            return
        now = time.monotonic()
        span.update_name(f"{operation} {model_name}")
        span.set_attributes(_about(operation, model_name, completion, now))
        if completion.failure is not None:
            span.set_attribute("error.type", completion.failure)
            span.set_status(StatusCode.ERROR, completion.failure)
        # Wall clocks are set now and then: all spans of a request are placed by one look at it.
        stages = _Stages(self._tracer, set_span_in_context(span), time.time() - now)
        for number, (request, times) in enumerate(
            zip(completion.requests, completion.times, strict=True)
        ):
            if number == 0:
                stages.add("read", times.arrived_s, times.read_s, {})
            for attempt in times.attempts:
                stages.add_attempt(request, attempt, now)


class _Stages:
    """Spans below the one of a request."""

    def __init__(self, tracer: Tracer, parent: Context, wall_offset_s: float) -> None:
        self._tracer = tracer
        self._parent = parent
        self._wall_offset_s = wall_offset_s

    def add(
        self,
        name: str,
        began_s: float,
        ended_s: float,
        attributes: Attributes,
        loss: str | None = None,
    ) -> None:
        span = self._tracer.start_span(
            name, self._parent, attributes=attributes, start_time=self._wall_ns(began_s)
        )
        if loss is not None:
            span.set_status(StatusCode.ERROR, loss)
        span.end(self._wall_ns(max(began_s, ended_s)))

    def add_attempt(self, request: GenerateRequest, attempt: AttemptTimes, now: float) -> None:
        """What one replica had of a request, as far as it came; the last stage bears its loss."""
        attributes: Attributes = {"pageray.request_id": request.request_id}
        ended_s = now if attempt.ended_s is None else attempt.ended_s
        edges = [("route", attempt.began_s)]
        if attempt.placed_s is not None:
            attributes["pageray.replica"] = attempt.replica_id or ""
            edges.append(("queue", attempt.placed_s))
            if attempt.start is not None:
                started_s = attempt.placed_s + attempt.start.queue_s
                edges.append(("prefill", started_s))
                edges.append(("decode", started_s + attempt.start.prefill_s))
        ends = [began_s for _, began_s in edges[1:]] + [ended_s]
        for (name, began_s), stage_ended_s in zip(edges, ends, strict=True):
            is_last = name == edges[-1][0]
            self.add(name, began_s, stage_ended_s, attributes, attempt.loss if is_last else None)

    def _wall_ns(self, monotonic_s: float) -> int:
        return int((monotonic_s + self._wall_offset_s) * 1e9)


def _about(operation: str, model_name: str, completion: Completion, now: float) -> Attributes:
    request, usage = completion.requests[0], completion.usage
    params = request.params
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": SYSTEM,
        "gen_ai.system": SYSTEM,
        "gen_ai.request.model": model_name,
        "gen_ai.response.model": model_name,
        "gen_ai.response.id": request.request_id,
        "gen_ai.request.id": request.request_id,
        "gen_ai.request.choice.count": params.n,
        "gen_ai.request.n": params.n,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.prompt_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.output_tokens": usage.num_completion_tokens,
        "gen_ai.usage.completion_tokens": usage.num_completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.num_cached_tokens,
        "gen_ai.usage.cached_tokens": usage.num_cached_tokens,
        "gen_ai.response.finish_reasons": completion.finish_reasons,
        "gen_ai.latency.e2e": now - completion.times[0].arrived_s,
    }
    if params.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = params.max_tokens
    if params.seed is not None:
        attributes["gen_ai.request.seed"] = params.seed
    return attributes | _latencies(completion.times, now)


def _latencies(all_times: Sequence[RequestTimes], now: float) -> Attributes:
    """Those of the prompt that had the first token."""
    firsts = [attempt for times in all_times if (attempt := times.first_attempt_with_token)]
    first = min(firsts, key=lambda attempt: attempt.first_token_s, default=None)
    if first is None or first.start is None:
        return {}
    decode_s = now - first.first_token_s
    return {
        "gen_ai.latency.time_to_first_token": first.first_token_s - all_times[0].arrived_s,
        "gen_ai.latency.time_in_queue": first.start.queue_s,
        "gen_ai.latency.time_in_model_prefill": first.start.prefill_s,
        "gen_ai.latency.time_in_model_decode": decode_s,
        "gen_ai.latency.time_in_model_inference": first.start.prefill_s + decode_s,
    }
