"""Prometheus metric of which models take requests, also of those that have no replica."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deployments.served_model import ServedModel


class ReadinessCollector(Collector):
    """Asks every model whenever somebody scrapes."""

    def __init__(self, served: Sequence[ServedModel]) -> None:
        self._served = served

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not ask yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What /ready tells of all together, of each."""
        gauge = GaugeMetricFamily(
            "pageray_model_ready",
            "1 while the model takes requests, or sleeps until one comes",
            labels=["model_name"],
        )
        for model in self._served:
            gauge.add_metric([model.name], float(model.is_ready))
        yield gauge
