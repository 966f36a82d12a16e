"""What steers the cluster may die: streams that are under way go on to their end."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.chaos.live_cluster import LiveCluster
from tests.chaos.model import MODEL_NAME, MODEL_OPTIONS
from tests.chaos.namespace_hosts import can_make_hosts
from tests.chaos.roles import Role
from tests.integration.serving import wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not can_make_hosts(), reason="makes network namespaces, which root may"),
]

BODY = {
    "model": MODEL_NAME,
    "prompt": list(range(2000, 2040)),
    "max_tokens": 1900,
    "temperature": 0,
    "ignore_eos": True,
}


def complete(url: str) -> str:
    answer = httpx2.post(f"{url}/v1/completions", json=BODY, timeout=120)
    text: str = answer.raise_for_status().json()["choices"][0]["text"]
    return text


def test_requests_go_on_while_serves_controller_dies_and_comes_back(chaos_model: Path) -> None:
    with LiveCluster(chaos_model, *MODEL_OPTIONS) as cluster, ThreadPoolExecutor() as pool:
        before = complete(cluster.url(1))
        [controller] = cluster.processes(Role.CONTROLLER)
        under_way = [pool.submit(complete, url) for url in cluster.urls]
        wait_until(lambda: cluster.num_requests() > 0, 10, "requests that run")
        cluster.kill(controller)
        assert [request.result() for request in under_way] == [before] * 2
        wait_until(lambda: cluster.processes(Role.CONTROLLER), 30, "a new controller")
        cluster.wait_ready(2)
        assert [complete(url) for url in cluster.urls] == [before] * 2
        wait_until(cluster.is_idle, 10, "nothing is left")
