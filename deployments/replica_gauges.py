"""A replica's engine in Ray's own metrics, beside what Ray and Serve say of the same replica.

Ray's agent on every node exposes them, and the dashboard's Grafana finds them there: names begin
with `ray_pageray_`, tags name application, deployment and replica. What clients feel is at the
endpoint's /metrics.
"""

from collections.abc import Callable
from typing import Final

from ray.serve import metrics

from engine.snapshot import EngineSnapshot

_GAUGES: Final[tuple[tuple[str, str, Callable[[EngineSnapshot], float]], ...]] = (
    ("pageray_kv_blocks", "KV blocks", lambda s: s.num_blocks),
    ("pageray_kv_free_blocks", "KV blocks that hold nothing of use", lambda s: s.num_free_blocks),
    (
        "pageray_kv_evictable_blocks",
        "KV blocks that hold a cached prefix nobody uses",
        lambda s: s.num_evictable_blocks,
    ),
    ("pageray_requests_running", "Sequences that run", lambda s: s.num_running),
    ("pageray_requests_waiting", "Sequences that wait", lambda s: s.num_waiting),
    (
        "pageray_queued_prefill_tokens",
        "Prompt tokens not computed yet",
        lambda s: s.num_queued_prefill_tokens,
    ),
    ("pageray_generated_tokens", "Tokens generated so far", lambda s: s.num_generated_tokens),
    ("pageray_preemptions", "Preemptions so far", lambda s: s.num_preemptions),
)


class ReplicaGauges:
    """The gauges of one replica; made in its process."""

    def __init__(self, model_name: str) -> None:
        self._gauges = [
            (metrics.Gauge(name, text, tag_keys=("model_name",)), read)
            for name, text, read in _GAUGES
        ]
        for gauge, _ in self._gauges:
            gauge.set_default_tags({"model_name": model_name})

    def show(self, snapshot: EngineSnapshot) -> None:
        """Show the engine as it is now."""
        for gauge, read in self._gauges:
            gauge.set(read(snapshot))
