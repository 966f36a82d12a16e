"""Prometheus metrics: what clients feel, measured here, and what the engines hold, from snapshots.

The registry belongs to one application; nothing is registered globally. Each frontend measures
its own requests, and shows the engines and what all others have measured: one address is enough to
scrape, and nothing is counted twice.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.snapshot import ReplicaSnapshot
from deployments.metric_family import Family, merge_families, read_families
from deployments.request_timer import ModelMetrics
from deployments.stage_metrics import StageMetrics
from deployments.vllm_metrics import vllm_metrics
from engine.output import FinishReason

# Small models make a token in a few milliseconds, long prompts take minutes.
LATENCY_BUCKETS_S: Final = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0),
)

_LABELS: Final = ("model_name",)

Reading = Callable[[ReplicaSnapshot], float]
OwnFamilies = tuple[str, list[Family]]
"""A frontend's id, and what it has measured itself."""
SnapshotsByModel = Mapping[str, Callable[[], list[ReplicaSnapshot]]]

_GAUGES: Final[tuple[tuple[str, str, Reading], ...]] = (
    ("requests_running", "Sequences that run", lambda r: r.engine.num_running),
    ("requests_waiting", "Sequences that wait", lambda r: r.engine.num_waiting),
    (
        "queued_prefill_tokens",
        "Prompt tokens not computed yet",
        lambda r: r.engine.num_queued_prefill_tokens,
    ),
    ("kv_cache_usage_ratio", "Share of KV blocks in use", lambda r: _usage(r)),
    ("kv_blocks", "KV blocks", lambda r: r.engine.num_blocks),
    ("kv_free_blocks", "KV blocks that hold nothing of use", lambda r: r.engine.num_free_blocks),
    (
        "kv_evictable_blocks",
        "KV blocks that hold a cached prefix nobody uses",
        lambda r: r.engine.num_evictable_blocks,
    ),
    ("kv_block_size_tokens", "Tokens in a KV block", lambda r: r.engine.block_size),
    ("engine_step_age_seconds", "Time without a step despite work", lambda r: r.engine.step_age_s),
    ("snapshot_age_seconds", "Age of the replica's newest snapshot", lambda r: r.age_s),
    ("replica_connected", "1 while the token stream is up", lambda r: float(r.connected)),
)

_COUNTERS: Final[tuple[tuple[str, str, Reading], ...]] = (
    ("engine_steps", "Steps", lambda r: r.engine.num_steps),
    ("preemptions", "Sequences whose blocks were taken back", lambda r: r.engine.num_preemptions),
    ("preempted_tokens", "Computed tokens that they lost", lambda r: r.engine.num_lost_tokens),
    ("prompt_tokens", "Prompt tokens", lambda r: r.engine.num_prompt_tokens),
    ("generation_tokens", "Tokens generated", lambda r: r.engine.num_generated_tokens),
    (
        "prefix_cache_queried_tokens",
        "Prompt tokens looked up in the prefix cache",
        lambda r: r.engine.num_cache_queried_tokens,
    ),
    (
        "prefix_cache_hit_tokens",
        "Prompt tokens found in the prefix cache",
        lambda r: r.engine.num_cache_hit_tokens,
    ),
)


def _usage(replica: ReplicaSnapshot) -> float:
    engine = replica.engine
    return (engine.num_blocks - engine.num_usable_blocks) / max(engine.num_blocks, 1)


class SnapshotCollector(Collector):
    """Reads the newest snapshots whenever somebody scrapes."""

    def __init__(self, snapshots: SnapshotsByModel) -> None:
        self._snapshots = snapshots

    def describe(self) -> list[Metric]:
        """Nothing: snapshots are not there yet when the registry asks."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One series for each replica."""
        replicas = [
            (model_name, replica)
            for model_name, snapshots in self._snapshots.items()
            for replica in snapshots()
        ]
        labels = [*_LABELS, "replica"]
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(f"pageray_{name}", text, labels=labels)
            for model_name, replica in replicas:
                gauge.add_metric([model_name, replica.replica_id], read(replica))
            yield gauge
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(f"pageray_{name}", text, labels=labels)
            for model_name, replica in replicas:
                counter.add_metric([model_name, replica.replica_id], read(replica))
            yield counter


class HttpMetrics:
    """Everything that GET /metrics shows."""

    def __init__(self, snapshots: SnapshotsByModel, frontend_id: str = "") -> None:
        self.frontend_id = frontend_id
        """Label of what is measured here; empty: there is none."""
        self._engines = SnapshotCollector(snapshots)
        self._registry = CollectorRegistry()
        ttft = self._latency("pageray_time_to_first_token_seconds", "Request until first token")
        inter_token = self._latency(
            "pageray_inter_token_latency_seconds", "Gap between tokens of a choice"
        )
        e2e = self._latency("pageray_request_duration_seconds", "Request until last token")
        open_requests = Gauge(
            "pageray_open_requests",
            "Generation requests that clients wait for",
            _LABELS,
            registry=self._registry,
        )
        finished = Counter(
            "pageray_requests",
            "Choices that ended, by finish reason; abort: the client left",
            [*_LABELS, "finish_reason"],
            registry=self._registry,
        )
        self._errors = Counter(
            "pageray_http_errors",
            "Error responses by HTTP status",
            [*_LABELS, "status"],
            registry=self._registry,
        )
        stages = StageMetrics.of_models(list(snapshots), self._registry, LATENCY_BUCKETS_S)
        self._of = {
            name: ModelMetrics(
                ttft=ttft.labels(name),
                inter_token=inter_token.labels(name),
                e2e=e2e.labels(name),
                stages=stages[name],
                open_requests=open_requests.labels(name),
                finished={reason: finished.labels(name, reason) for reason in FinishReason},
            )
            for name in snapshots
        }

    def show(self, collector: Collector) -> None:
        """Show what somebody else collects as well."""
        self._registry.register(collector)

    def of(self, model_name: str) -> ModelMetrics:
        """What is measured of one model's requests."""
        return self._of[model_name]

    def count_error(self, status: int, model_name: str | None) -> None:
        """Count an error response; without a name, of the only model there is."""
        if model_name is None:
            model_name = next(iter(self._of)) if len(self._of) == 1 else ""
        self._errors.labels(model_name, str(status)).inc()

    def own_families(self) -> list[Family]:
        """What was measured here."""
        return read_families(self._registry, frontend=self.frontend_id)

    def exposition(self, others: Iterable[OwnFamilies] = ()) -> bytes:
        """All series in Prometheus' text format, some of them under vLLM's names as well.

        `others` have measured theirs; this frontend may be among them.
        """
        families = read_families(self._engines) + self.own_families()
        for frontend_id, theirs in others:
            families += theirs if frontend_id != self.frontend_id else []
        shown = CollectorRegistry()
        shown.register(_Shown(list(merge_families(families))))
        return generate_latest(shown)

    def _latency(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, _LABELS, buckets=LATENCY_BUCKETS_S, registry=self._registry)


class _Shown(Collector):
    """Metrics that were collected already, under all their names."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics
        yield from vllm_metrics(self._metrics)
