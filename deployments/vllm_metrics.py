"""Our metrics under the names that vLLM has for them, so that its dashboards show PageRay as well.

Names and labels of vLLM 0.33 (vllm/v1/metrics/loggers.py), and older ones where its published
dashboards still ask for them. Whatever vLLM measures otherwise is left out.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import Metric

_NAMES: Final = {
    "pageray_requests_running": ("vllm:num_requests_running",),
    "pageray_requests_waiting": ("vllm:num_requests_waiting",),
    "pageray_kv_cache_usage_ratio": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "pageray_preemptions": ("vllm:num_preemptions",),
    "pageray_prompt_tokens": ("vllm:prompt_tokens",),
    "pageray_generation_tokens": ("vllm:generation_tokens",),
    "pageray_prefix_cache_queried_tokens": ("vllm:prefix_cache_queries",),
    "pageray_prefix_cache_hit_tokens": ("vllm:prefix_cache_hits",),
    "pageray_time_to_first_token_seconds": ("vllm:time_to_first_token_seconds",),
    "pageray_inter_token_latency_seconds": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
    ),
    "pageray_request_queue_seconds": ("vllm:request_queue_time_seconds",),
    "pageray_request_prefill_seconds": ("vllm:request_prefill_time_seconds",),
    "pageray_request_decode_seconds": ("vllm:request_decode_time_seconds",),
    "pageray_request_duration_seconds": ("vllm:e2e_request_latency_seconds",),
    "pageray_requests": ("vllm:request_success",),
}
_LABELS: Final = {"replica": "engine", "finish_reason": "finished_reason"}


def vllm_metrics(metrics: Iterable[Metric]) -> Iterator[Metric]:
    """Each of our metrics that vLLM has too, once for each of its names."""
    for metric in metrics:
        for name in _NAMES.get(metric.name, ()):
            alias = Metric(name, metric.documentation, metric.type)
            for sample in metric.samples:
                labels = {_LABELS.get(key, key): value for key, value in sample.labels.items()}
                alias.add_sample(name + sample.name.removeprefix(metric.name), labels, sample.value)
            yield alias
