"""Every panel of the dashboard shows something: a real Prometheus scrapes a live service."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.integration.serving import Serving, free_port, wait_until
from tests.k8s.test_monitoring import queries, rules

PROMETHEUS = shutil.which("prometheus")

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not here: apt-get install it"),
]

VARIABLES = {"$model": ".*", "$__rate_interval": "10s"}


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[httpx2.Client]:
    """Scrapes an endpoint every second; yields what asks it."""
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "pageray", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx2.Client(base_url=f"http://{address}", trust_env=False, timeout=10) as client:
            wait_until(lambda: is_up(client), 20, "prometheus")
            yield client
    finally:
        process.terminate()
        process.wait(20)


def is_up(client: httpx2.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx2.TransportError:
        return False


def ask(client: httpx2.Client, query: str) -> list[dict[str, Any]]:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    answer = client.get("/api/v1/query", params={"query": query})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def test_every_panel_and_alert_has_data(tiny_model: Path, tmp_path: Path) -> None:
    two = Serving(
        tiny_model,
        *("--served-model-name", "tiny", "--replicas", "2", "--num-frontends", "2"),
        *("--kv-cache-memory", "2MiB", "--num-threads", "1"),
        log=tmp_path / "log",
    )
    try:
        two.wait_ready()
        two.wait_replicas(2)
        with prometheus(f"127.0.0.1:{two.port}", tmp_path) as client, ThreadPoolExecutor(4) as pool:

            def load() -> None:
                body = {"model": "tiny", "prompt": "Once", "max_tokens": 30, "ignore_eos": True}
                list(pool.map(lambda _: two.client.post("/v1/completions", json=body), range(40)))
                two.client.post("/v1/completions", json={"model": "none", "prompt": "x"})

            # No replica is lost.
            wanted = [query for query in queries() if "pageray_replica_connected" not in query]

            def missing() -> list[str]:
                load()
                return [query for query in wanted if not ask(client, query)]

            wait_until(lambda: not missing(), 60, json.dumps(missing(), indent=1))
            assert len(ask(client, "count by (frontend) (pageray_open_requests)")) == 2
            for rule in rules():  # none is firing, and all can be asked
                assert ask(client, rule["expr"]) == [], rule["alert"]
    finally:
        two.stop()
