"""Prometheus metrics of what this frontend holds back and has placed."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.snapshot import AdmissionSnapshot

Reading = Callable[[AdmissionSnapshot], float]

_GAUGES: Final[tuple[tuple[str, str, Reading], ...]] = (
    ("held_requests", "Requests that wait for a replica", lambda a: a.num_held_requests),
    (
        "held_tokens",
        "Prompt tokens of requests that wait for a replica",
        lambda a: a.num_held_tokens,
    ),
    (
        "placed_requests",
        "Requests that this frontend has on replicas",
        lambda a: a.num_placed_requests,
    ),
)

_COUNTERS: Final[tuple[tuple[str, str, Reading], ...]] = (
    ("refused", "Requests that waited in vain or could not", lambda a: a.num_refused),
    ("moved", "Times a request lost its replica before its first token", lambda a: a.num_moved),
    ("resumed", "Times a stream lost its replica and went on", lambda a: a.num_resumed),
    ("quarantined", "Requests that two replicas died of", lambda a: a.num_quarantined),
)


class AdmissionCollector(Collector):
    """Reads the newest snapshot of every model whenever somebody scrapes."""

    def __init__(self, admission: Mapping[str, Callable[[], AdmissionSnapshot]]) -> None:
        self._admission = admission

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not ask yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The queue of this frontend and its placements by reason."""
        by_model = {name: read() for name, read in self._admission.items()}
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(f"pageray_{name}", text, labels=["model_name"])
            for model_name, admission in by_model.items():
                gauge.add_metric([model_name], read(admission))
            yield gauge
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(f"pageray_{name}", text, labels=["model_name"])
            for model_name, admission in by_model.items():
                counter.add_metric([model_name], read(admission))
            yield counter
        placements = CounterMetricFamily(
            "pageray_placements",
            "Requests placed on a replica, by the reason of the choice",
            labels=["model_name", "reason"],
        )
        for model_name, admission in by_model.items():
            for reason, count in admission.num_placements.items():
                placements.add_metric([model_name, reason], count)
        yield placements
