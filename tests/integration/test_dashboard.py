"""Every panel of the dashboard shows something: a real Prometheus scrapes a live service."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.prometheus_server import (
    NO_PROMETHEUS,
    PROMETHEUS,
    PrometheusServer,
    prometheus_server,
)
from tests.integration.serving import Serving, wait_until
from tests.k8s.test_monitoring import queries, rules

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason=NO_PROMETHEUS),
]

VARIABLES = {"$model": ".*", "$__rate_interval": "10s"}


def ask(server: PrometheusServer, query: str) -> list[dict[str, Any]]:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return server.ask(query)


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
        target = [f"127.0.0.1:{two.port}"]
        with prometheus_server(tmp_path, target) as server, ThreadPoolExecutor(4) as pool:

            def load() -> None:
                body = {"model": "tiny", "prompt": "Once", "max_tokens": 30, "ignore_eos": True}
                bodies = [{**body, "stream": number % 2 > 0} for number in range(40)]
                list(pool.map(lambda each: two.client.post("/v1/completions", json=each), bodies))
                two.client.post("/v1/completions", json={"model": "none", "prompt": "x"})

            # No replica is lost.
            wanted = [query for query in queries() if "pageray_replica_connected" not in query]

            def missing() -> list[str]:
                load()
                return [query for query in wanted if not ask(server, query)]

            wait_until(lambda: not missing(), 60, json.dumps(missing(), indent=1))
            assert len(ask(server, "count by (frontend) (pageray_open_requests)")) == 2
            for rule in rules():  # none is firing, and all can be asked
                assert ask(server, rule["expr"]) == [], rule["alert"]
    finally:
        two.stop()
