"""Where the time goes until a client has its first token, and after it.

read -> route -> queue -> prefill -> delivery; together they are the time to the first token of a
stream. Then decode.
"""

from collections.abc import Mapping
from typing import Final, Self

from prometheus_client import CollectorRegistry, Histogram

from cluster.request_times import RequestTimes

STAGES: Final[Mapping[str, str]] = {
    "read": "Request until it is parsed and tokenized",
    "route": "Wait for a replica with room, in the frontend",
    "queue": "Wait in the engine until a step computes something of the request",
    "prefill": "From there until the engine has the first token",
    "delivery": "Both ways between frontend and engine, until the first event of a stream is out",
    "decode": "First token until last token",
}


class StageMetrics:
    """The histograms of one model."""

    def __init__(self, by_stage: Mapping[str, Histogram]) -> None:
        self._by_stage = by_stage

    @classmethod
    def of_models(
        cls, names: list[str], registry: CollectorRegistry, buckets: tuple[float, ...]
    ) -> dict[str, Self]:
        """Those of each model, registered once for all."""
        families = {
            stage: Histogram(
                f"pageray_request_{stage}_seconds",
                text,
                ("model_name",),
                buckets=buckets,
                registry=registry,
            )
            for stage, text in STAGES.items()
        }
        return {
            name: cls({stage: family.labels(name) for stage, family in families.items()})
            for name in names
        }

    def on_first_token(self, times: RequestTimes) -> None:
        """The first token of an HTTP request is here, of the prompt with these times."""
        attempt = times.first_attempt_with_token
        if attempt is None or attempt.placed_s is None or attempt.start is None:
            return
        self._observe("read", times.read_s - times.arrived_s)
        self._observe("route", attempt.placed_s - times.read_s)
        self._observe("queue", attempt.start.queue_s)
        self._observe("prefill", attempt.start.prefill_s)

    def on_delivery(self, times: RequestTimes, now: float) -> None:
        """The same token has left for the client."""
        attempt = times.first_attempt_with_token
        if attempt is None or attempt.placed_s is None or attempt.start is None:
            return
        in_engine_s = attempt.start.queue_s + attempt.start.prefill_s
        self._observe("delivery", now - attempt.placed_s - in_engine_s)

    def on_last_token(self, decode_s: float) -> None:
        """All choices have ended, so long after the first token."""
        self._observe("decode", decode_s)

    def _observe(self, stage: str, seconds: float) -> None:
        self._by_stage[stage].observe(max(0.0, seconds))
