"""GET /metrics: names, units and numbers."""

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from cluster.snapshot import ReplicaSnapshot
from deployments.http_app import build_http_app, build_metrics
from deployments.http_settings import HttpSettings
from deployments.metrics import OwnFamilies
from deployments.peers import Decisions
from deployments.served_model import ServedModel
from engine.errors import Overloaded
from engine.output import FinishReason, StartTimes
from engine.tokenizer import Tokenizer
from tests.deployments.asgi_client import call
from tests.deployments.conftest import BuildApp
from tests.deployments.fake_token_source import FakeTokenSource, engine_snapshot

Samples = dict[tuple[str, str], float]


def scrape(app: Starlette) -> Samples:
    """Samples by name and by the label that tells them apart."""
    response = call(app, "/metrics")
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples: Samples = {}
    for family in text_string_to_metric_families(response.body.decode()):
        assert family.name.startswith(("pageray_", "vllm:"))
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "tiny"
            samples[sample.name, ",".join(labels.values())] = sample.value
    return samples


def test_engines_show_their_newest_snapshot(app: Starlette, source: FakeTokenSource) -> None:
    busy = engine_snapshot(
        num_running=3,
        num_waiting=2,
        num_preemptions=7,
        num_cache_queried_tokens=100,
        num_cache_hit_tokens=40,
        num_prompt_tokens=1000,
        num_generated_tokens=500,
    )
    source.replicas = [ReplicaSnapshot("r1", busy, 0.2), ReplicaSnapshot("r2", busy, 0.1, False)]
    samples = scrape(app)
    expected = {
        "pageray_requests_running": 3,
        "pageray_requests_waiting": 2,
        "pageray_kv_cache_usage_ratio": 0.1,
        "pageray_kv_blocks": 100,
        "pageray_kv_free_blocks": 60,
        "pageray_kv_evictable_blocks": 30,
        "pageray_kv_block_size_tokens": 16,
        "pageray_preemptions_total": 7,
        "pageray_prefix_cache_queried_tokens_total": 100,
        "pageray_prefix_cache_hit_tokens_total": 40,
        "pageray_prompt_tokens_total": 1000,
        "pageray_generation_tokens_total": 500,
        "pageray_snapshot_age_seconds": 0.2,
        "pageray_replica_connected": 1,
    }
    assert {name: samples[name, "r1"] for name in expected} == expected
    assert samples["pageray_replica_connected", "r2"] == 0


def test_requests_are_counted_and_timed_once(app: Starlette, source: FakeTokenSource) -> None:
    call(app, "/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "stream": True})
    call(app, "/v1/completions", {"prompt": "a"})
    samples = scrape(app)
    assert samples["pageray_requests_total", "length"] == 4
    assert samples["pageray_requests_total", "stop"] == 1
    assert samples["pageray_time_to_first_token_seconds_count", ""] == 2
    assert samples["pageray_request_duration_seconds_count", ""] == 2
    num_tokens = 4 * 3 + len(source.requests[-1].prompt_token_ids) * 0 + 7
    assert samples["pageray_inter_token_latency_seconds_count", ""] == num_tokens - 5
    assert samples["pageray_open_requests", ""] == 0


def test_the_stages_to_the_first_token_are_its_time(
    app: Starlette, source: FakeTokenSource
) -> None:
    source.start_times = StartTimes(queue_s=0.25, prefill_s=0.5)
    call(app, "/v1/completions", {"prompt": "a", "n": 2, "max_tokens": 3, "stream": True})
    call(app, "/v1/completions", {"prompt": "a", "max_tokens": 3})
    samples = scrape(app)
    for stage in ("read", "route", "queue", "prefill", "decode"):
        assert samples[f"pageray_request_{stage}_seconds_count", ""] == 2
    # Only a stream hands its first token out before the others.
    assert samples["pageray_request_delivery_seconds_count", ""] == 1
    assert samples["pageray_request_queue_seconds_sum", ""] == 0.5
    assert samples["pageray_request_prefill_seconds_sum", ""] == 1.0
    assert samples["vllm:request_queue_time_seconds_sum", ""] == 0.5
    assert samples["vllm:request_prefill_time_seconds_sum", ""] == 1.0


def test_vllms_dashboards_find_the_names_that_they_ask_for(
    app: Starlette, source: FakeTokenSource
) -> None:
    busy = engine_snapshot(num_running=3, num_prompt_tokens=1000)
    source.replicas = [ReplicaSnapshot("r1", busy, 0.2)]
    call(app, "/v1/completions", {"prompt": "a", "max_tokens": 3})
    samples = scrape(app)
    assert samples["vllm:num_requests_running", "r1"] == 3
    assert (
        samples["vllm:kv_cache_usage_perc", "r1"] == samples["pageray_kv_cache_usage_ratio", "r1"]
    )
    assert samples["vllm:prompt_tokens_total", "r1"] == 1000
    for ours, theirs in (
        ("pageray_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
        ("pageray_inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        ("pageray_request_duration_seconds", "vllm:e2e_request_latency_seconds"),
    ):
        assert samples[f"{theirs}_count", ""] == samples[f"{ours}_count", ""] > 0
        assert samples[f"{theirs}_sum", ""] == samples[f"{ours}_sum", ""]
        assert samples[f"{theirs}_bucket", "+Inf"] == samples[f"{ours}_bucket", "+Inf"]
    assert sum(samples["vllm:request_success_total", reason] for reason in FinishReason) == 1


def test_latency_buckets_tell_apart_steps_below_ten_milliseconds(app: Starlette) -> None:
    call(app, "/v1/completions", {"prompt": "a"})
    for name in ("time_to_first_token", "inter_token_latency", "request_duration"):
        edges = {
            float(label)
            for family, label in scrape(app)
            if family == f"pageray_{name}_seconds_bucket"
        }
        assert min(edges) == 0.0005
        assert len([edge for edge in edges if edge < 0.01]) >= 6


def test_errors_are_counted_by_status_and_failed_choices_by_reason(
    app: Starlette, source: FakeTokenSource
) -> None:
    call(app, "/v1/completions", {"prompt": "a", "temprature": 1})
    source.error = Overloaded("Full.", "Wait.")
    call(app, "/v1/completions", {"prompt": "a", "n": 3})
    samples = scrape(app)
    assert samples["pageray_http_errors_total", "400"] == 1
    assert samples["pageray_http_errors_total", "503"] == 1
    assert samples["pageray_requests_total", "error"] == 3
    assert samples["pageray_request_duration_seconds_count", ""] == 0


def test_one_scrape_has_what_every_frontend_has_measured(
    source: FakeTokenSource, tokenizer: Tokenizer
) -> None:
    """Ours among the answers is not counted twice, and one that is silent spoils nothing."""
    model = ServedModel("tiny", max_model_len=100, tokenizer=tokenizer, source=source)
    ours, theirs = build_metrics([model], "a"), build_metrics([model], "b")
    ours.count_error(400, "tiny")
    theirs.count_error(400, "tiny")
    theirs.count_error(400, "tiny")

    class ThreePeers:
        async def families(self) -> list[OwnFamilies | BaseException]:
            silent = TimeoutError("hangs")
            return [("a", ours.own_families()), silent, ("b", theirs.own_families())]

        async def decisions(self, _request_id: str) -> list[Decisions | BaseException]:
            return []

    app = build_http_app([model], HttpSettings(), ThreePeers(), metrics=ours)
    text = call(app, "/metrics").body.decode()
    assert text.count("# TYPE pageray_http_errors_total counter") == 1
    samples = [
        (sample.labels.get("frontend"), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "pageray_http_errors_total"
    ]
    assert samples == [("a", 1), ("b", 2)]
    running = [line for line in text.splitlines() if line.startswith("pageray_requests_running")]
    assert len(running) == len(source.replicas), "engines are the same for all frontends"
    assert all("frontend=" not in line for line in running)


def test_applications_share_no_registry(build_app: BuildApp) -> None:
    first, second = build_app(), build_app()
    call(first, "/v1/completions", {"prompt": "a"})
    assert scrape(second)["pageray_requests_total", "stop"] == 0
    assert not any(family.name.startswith("pageray") for family in REGISTRY.collect())
