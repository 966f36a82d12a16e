"""A tensor-parallel group on two hosts computes, dies and comes back as one."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from engine import LLM, SamplingParams
from tests.chaos.live_cluster import HEAD, LiveCluster
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

PROMPT = list(range(2000, 2040))
BODY = {"model": MODEL_NAME, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def cluster(chaos_model: Path) -> Iterator[LiveCluster]:
    """Four hosts with room for one rank or the frontend each, so that a group of two is on two of
    them and one is free."""
    options = (*MODEL_OPTIONS, "--tensor-parallel-size", "2")
    with LiveCluster(chaos_model, *options, num_hosts=4, num_replicas=1, num_cpus=1) as cluster:
        yield cluster


def test_ranks_on_two_hosts_give_the_tokens_of_one_and_die_together(
    cluster: LiveCluster, chaos_model: Path
) -> None:
    answer = complete(cluster)
    with LLM(chaos_model, dtype="float32", kv_cache_bytes=16 << 20) as llm:
        params = SamplingParams(max_tokens=24, temperature=0)
        [alone] = llm.generate([PROMPT], params)
    assert answer == alone.choices[0].text

    ranks = {host: cluster.processes(Role.RANK, host) for host in cluster.hosts}
    assert sorted(len(found) for found in ranks.values()) == [0, 0, 1, 1]
    [supervisor] = cluster.processes(Role.REPLICA)
    group = [supervisor, *(rank for found in ranks.values() for rank in found)]
    last = max(host for host, found in ranks.items() if found)
    cluster.kill(ranks[last][0])
    _, alive = psutil.wait_procs(group, timeout=5)
    assert not alive
    wait_until(lambda: len(cluster.processes(Role.RANK)) == 2, 30, "a new group")
    assert complete(cluster) == answer
    wait_until(cluster.is_idle, 5, "nothing is left")


def test_a_stream_outlives_the_cut_of_a_host_of_its_group(cluster: LiveCluster) -> None:
    body = {**BODY, "max_tokens": 400, "ignore_eos": True}
    [home] = [host for host in cluster.hosts if cluster.processes(Role.FRONTEND, host)]
    url = f"{cluster.url(home)}/v1/completions"
    expected = httpx2.post(url, json=body, timeout=60).raise_for_status().json()["choices"][0]
    victim = max(host for host in cluster.hosts if cluster.processes(Role.RANK, host))
    assert victim not in (HEAD, home)
    pieces = []
    with httpx2.stream("POST", url, json={**body, "stream": True}, timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                pieces.append(json.loads(line.removeprefix("data: "))["choices"][0])
            if len(pieces) == 20:
                cluster.cut(victim)
    cluster.heal(victim)
    assert "".join(piece["text"] for piece in pieces) == expected["text"]
    assert pieces[-1]["finish_reason"] == "length"
    wait_until(cluster.is_idle, 10, "nothing is left")


def complete(cluster: LiveCluster) -> str:
    # Where the frontend is: on another host the door may be opening for a replica that starts.
    [home] = [host for host in cluster.hosts if cluster.processes(Role.FRONTEND, host)]
    response = httpx2.post(f"{cluster.url(home)}/v1/completions", json=BODY, timeout=60)
    text: str = response.raise_for_status().json()["choices"][0]["text"]
    return text
