"""Two hosts as the README starts them, seen from outside: metrics, traces, Ray's dashboard."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.chaos.live_cluster import LiveCluster
from tests.chaos.model import MODEL_NAME, MODEL_OPTIONS
from tests.chaos.namespace_hosts import can_make_hosts
from tests.integration.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.integration.prometheus_server import NO_PROMETHEUS, PROMETHEUS, prometheus_server
from tests.integration.serving import free_port, wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts(), reason="makes network namespaces, which root may"),
]

TRACE_ID, CLIENT_SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"model": MODEL_NAME, "prompt": list(range(2000, 2040)), "max_tokens": 16, "stream": True}
STAGES = ["read", "route", "queue", "prefill", "decode"]


@dataclass
class Observed:
    """The hosts, and who receives their traces."""

    cluster: LiveCluster
    receiver: OtlpReceiver


@pytest.fixture(scope="module")
def observed(chaos_model: Path) -> Iterator[Observed]:
    """A replica and a frontend on each of two hosts."""
    port = free_port()
    options = (*MODEL_OPTIONS, "--otlp-endpoint", f"http://{{machine}}:{port}")
    cluster = LiveCluster(
        chaos_model, *options, num_hosts=2, num_replicas=2, num_frontends=2, has_dashboard=True
    )
    with otlp_receiver(port) as receiver, cluster:
        yield Observed(cluster, receiver)


def post(url: str, traceparent: str | None = None) -> None:
    headers = {} if traceparent is None else {"traceparent": traceparent}
    answer = httpx2.post(f"{url}/v1/completions", json=BODY, headers=headers, trust_env=False)
    assert answer.raise_for_status().text.endswith("data: [DONE]\n\n")


def test_a_clients_trace_shows_every_stage_of_its_request(observed: Observed) -> None:
    for url in observed.cluster.urls:
        post(url, f"00-{TRACE_ID}-{CLIENT_SPAN_ID}-01")
    arrived = partial(observed.receiver.spans, bytes.fromhex(TRACE_ID))
    wait_until(lambda: len(arrived()) == 2 * (1 + len(STAGES)), 10, "two traces")
    roots = [span for span in arrived() if span.parent_span_id == bytes.fromhex(CLIENT_SPAN_ID)]
    assert [span.name for span in roots] == [f"text_completion {MODEL_NAME}"] * 2
    for root in roots:
        stages = [span for span in arrived() if span.parent_span_id == root.span_id]
        assert [span.name for span in stages] == STAGES
        assert stages[-1].end_time_unix_nano <= root.end_time_unix_nano
        told = {attribute.key: attribute.value for attribute in root.attributes}
        assert told["gen_ai.usage.output_tokens"].int_value == 16
        assert told["http.response.status_code"].int_value == 200


def test_both_replicas_have_told_of_their_starts(observed: Observed) -> None:
    starts = [span for span in observed.receiver.spans() if span.name == f"start {MODEL_NAME}"]
    assert len(starts) == 2
    for start in starts:
        phases = [s.name for s in observed.receiver.spans() if s.parent_span_id == start.span_id]
        assert {"start ranks", "find model", "load weights", "canary"} <= set(phases)


def test_the_dashboard_shows_the_application(observed: Observed) -> None:
    cluster = observed.cluster
    answer = httpx2.get(
        f"{cluster.dashboard_url}/api/serve/applications/",
        headers={"Authorization": f"Bearer {cluster.token}"},
        trust_env=False,
    )
    application = answer.raise_for_status().json()["applications"]["pageray"]
    assert application["status"] == "RUNNING"
    shown = {
        name: [replica["state"] for replica in deployment["replicas"]]
        for name, deployment in application["deployments"].items()
    }
    assert shown == {"Frontend": ["RUNNING"] * 2, f"Replica-{MODEL_NAME}": ["RUNNING"] * 2}


def test_the_dashboard_lets_nobody_in_without_the_token(observed: Observed) -> None:
    for path in ("/api/serve/applications/", "/api/jobs/"):
        answer = httpx2.get(f"{observed.cluster.dashboard_url}{path}", trust_env=False)
        assert answer.status_code == 401, path


def test_rays_own_metrics_show_the_engines(observed: Observed) -> None:
    def engines() -> list[str]:
        pages = [httpx2.get(url, trust_env=False).text for url in ray_metrics(observed.cluster)]
        lines = [line for page in pages for line in page.splitlines()]
        return [line for line in lines if line.startswith("ray_pageray_kv_free_blocks{")]

    wait_until(lambda: len(engines()) == 2, 30, "both replicas in Ray's metrics")
    assert all(f'model_name="{MODEL_NAME}"' in line for line in engines())


@pytest.mark.skipif(PROMETHEUS is None, reason=NO_PROMETHEUS)
def test_prometheus_scrapes_the_service_and_ray(observed: Observed, tmp_path: Path) -> None:
    cluster = observed.cluster
    service = [cluster.urls[0].removeprefix("http://")]
    nodes = [url.removeprefix("http://").removesuffix("/metrics") for url in ray_metrics(cluster)]
    with prometheus_server(tmp_path, service, nodes) as server:
        wait_until(lambda: len(server.ask("up == 1")) == 3, 20, "all three targets")
        for url in cluster.urls:
            post(url)
        wait_until(lambda: server.ask("sum(pageray_requests_total) >= 2"), 10, "two requests")
        for query, count in (
            ("pageray_kv_free_blocks", 2),
            ("count by (frontend) (pageray_request_prefill_seconds_count)", 2),
            ("ray_pageray_kv_free_blocks", 2),
        ):
            wait_until(lambda: len(server.ask(query)) == count, 20, query)  # noqa: B023  at once


def ray_metrics(cluster: LiveCluster) -> list[str]:
    """Where Ray's agents show the metrics of their hosts."""
    return [f"http://{cluster.hosts.address(host)}:8080/metrics" for host in cluster.hosts]
