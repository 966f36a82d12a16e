"""Prometheus metrics of what this frontend holds back and has placed."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.snapshot import AdmissionSnapshot


class AdmissionCollector(Collector):
    """Reads the newest snapshot whenever somebody scrapes."""

    def __init__(self, model_name: str, admission: Callable[[], AdmissionSnapshot]) -> None:
        self._model_name = model_name
        self._admission = admission

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not ask yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The queue of this frontend and its placements by reason."""
        admission = self._admission()
        for name, text, value in (
            ("held_requests", "Requests that wait for a replica", admission.num_held_requests),
            (
                "placed_requests",
                "Requests that this frontend has on replicas",
                admission.num_placed_requests,
            ),
            ("held_tokens", "Prompt tokens of these", admission.num_held_tokens),
        ):
            gauge = GaugeMetricFamily(f"pageray_{name}", text, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        refused = CounterMetricFamily(
            "pageray_refused", "Requests that waited in vain or could not", labels=["model_name"]
        )
        refused.add_metric([self._model_name], admission.num_refused)
        yield refused
        placements = CounterMetricFamily(
            "pageray_placements",
            "Requests placed on a replica, by the reason of the choice",
            labels=["model_name", "reason"],
        )
        for reason, count in admission.num_placements.items():
            placements.add_metric([self._model_name, reason], count)
        yield placements
