"""Two hosts with a replica each: every endpoint answers, and nothing is left behind."""

import re
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.chaos.live_cluster import LiveCluster
from tests.chaos.model import MODEL_NAME, MODEL_OPTIONS
from tests.chaos.namespace_hosts import NamespaceHosts, can_make_hosts, ip
from tests.chaos.roles import Role

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts(), reason="makes network namespaces, which root may"),
]

BODY = {"model": MODEL_NAME, "prompt": list(range(2000, 2040)), "max_tokens": 16, "temperature": 0}


def test_both_hosts_answer_alike_and_leave_nothing(chaos_model: Path) -> None:
    cluster = LiveCluster(chaos_model, *MODEL_OPTIONS, num_hosts=2, num_replicas=2)
    with cluster:
        answers = [httpx2.post(f"{url}/v1/completions", json=BODY) for url in cluster.urls]
        texts = [answer.raise_for_status().json()["choices"][0]["text"] for answer in answers]
        assert texts[0] == texts[1]
        for host in cluster.hosts:
            for role in (Role.RANK, Role.REPLICA, Role.PROXY, Role.HAPROXY, Role.RAYLET):
                assert len(cluster.processes(role, host)) == 1, (role, host)
        for role in (Role.GCS, Role.CONTROLLER, Role.FRONTEND):
            assert len(cluster.processes(role)) == 1, role
        assert cluster.is_idle()
        processes = [each for host in cluster.hosts for each in cluster.hosts.processes(host)]
        assert isinstance(cluster.hosts, NamespaceHosts)
        names, folder = cluster.hosts.names, cluster.hosts.folder
        assert folder.exists()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive
    assert not folder.exists()
    left = re.findall(r"pageray[\d-]+", ip("-brief", "link") + ip("netns"))
    assert not set(names) & set(left)
