"""Metric families as plain data, which frontends tell each other."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class Family(NamedTuple):
    """One metric with all its series."""

    name: str
    help: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]
    """Name, labels and value of each."""


def read_families(collector: Collector, **labels: str) -> list[Family]:
    """Return what is collected at present, with more labels; empty ones are left out."""
    more = {key: value for key, value in labels.items() if value}
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, {**sample.labels, **more}, sample.value) for sample in metric.samples],
        )
        for metric in collector.collect()
    ]


def merge_families(families: Iterable[Family]) -> Iterator[Metric]:
    """Join those of one name: Prometheus' text format wants them together."""
    metrics: dict[str, Metric] = {}
    for family in families:
        metric = metrics.get(family.name)
        if metric is None:
            metric = metrics[family.name] = Metric(family.name, family.help, family.type)
        for name, labels, value in family.samples:
            metric.add_sample(name, labels, value)
    yield from metrics.values()
