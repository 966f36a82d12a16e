"""Measures the requests of one model as their clients feel them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from cluster.request_times import RequestTimes
from deployments.stage_metrics import StageMetrics
from engine.output import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetrics:
    """What is measured of the requests of one model."""

    ttft: Histogram
    inter_token: Histogram
    e2e: Histogram
    stages: StageMetrics
    open_requests: Gauge
    finished: Mapping[FinishReason, Counter]


class RequestTimer:
    """Measures one HTTP request from its arrival, a reading of `time.monotonic`."""

    def __init__(self, metrics: ModelMetrics, arrived_s: float) -> None:
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._first_s = 0.0
        self._first_times: RequestTimes | None = None
        """Of the prompt that had the first token."""
        self._is_delivered = False
        self._last_s: dict[int, float] = {}
        """Choice index to the time of its newest token."""

    def begin(self) -> None:
        """Its client waits from now on; call `close` in any case."""
        self._metrics.open_requests.inc()

    def on_piece(
        self,
        choice_index: int,
        num_tokens: int,
        finish_reason: FinishReason | None,
        times: RequestTimes,
    ) -> None:
        """Note that a choice, of the prompt with these times, gained tokens or ended."""
        if num_tokens:
            now = time.monotonic()
            last_s = self._last_s.get(choice_index)
            if last_s is not None:
                self._metrics.inter_token.observe((now - last_s) / num_tokens)
            elif not self._last_s:
                self._first_s, self._first_times = now, times
                self._metrics.ttft.observe(now - self._arrived_s)
                self._metrics.stages.on_first_token(times)
            self._last_s[choice_index] = now
        if finish_reason is not None:
            self._metrics.finished[finish_reason].inc()

    def on_sent(self) -> None:
        """Note that what there is so far has gone out to the client."""
        if not self._is_delivered and self._first_times is not None:
            self._is_delivered = True
            self._metrics.stages.on_delivery(self._first_times, time.monotonic())

    def close(self, num_unfinished: int, ending: FinishReason) -> None:
        """End the measurement; choices without an end of their own get this one."""
        self._metrics.open_requests.dec()
        if num_unfinished:
            self._metrics.finished[ending].inc(num_unfinished)
            return
        now = time.monotonic()
        self._metrics.e2e.observe(now - self._arrived_s)
        if self._last_s:
            self._metrics.stages.on_last_token(now - self._first_s)
