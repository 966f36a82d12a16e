"""A real Prometheus, where this machine has one."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.integration.serving import free_port, wait_until

PROMETHEUS = shutil.which("prometheus")
NO_PROMETHEUS = "prometheus is not here: apt-get install it"


class PrometheusServer:
    """Asks one that runs."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Series that a query has now."""
        answer = self._client.get("/api/v1/query", params={"query": query})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx2.TransportError:
            return False


@contextmanager
def prometheus_server(folder: Path, *targets: Sequence[str]) -> Iterator[PrometheusServer]:
    """Scrape targets every second, each list of them as a job of its own: job0, job1."""
    jobs = [
        {"job_name": f"job{number}", "static_configs": [{"targets": list(each)}]}
        for number, each in enumerate(targets)
    ]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
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
            server = PrometheusServer(client)
            wait_until(server.is_up, 20, "prometheus")
            yield server
    finally:
        process.terminate()
        process.wait(20)
