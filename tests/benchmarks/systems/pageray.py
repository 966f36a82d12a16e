"""PageRay: `pageray serve` as it comes, and the bare engine."""

import importlib.metadata
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from tests.benchmarks.http_session import Launch, open_http
from tests.benchmarks.offline_session import Worker, open_worker
from tests.benchmarks.server import HOST
from tests.benchmarks.systems.system import KV_CACHE_GIB, MODEL_NAME, Mode, Session
from tests.benchmarks.workload import Ask, Workload


class PageRay:
    """The system that the others are compared with."""

    name = "pageray"

    def __init__(self, model: Path, dtype: str | None, warm_up: list[Ask]) -> None:
        self.dtype = dtype or "auto"
        self._model = model
        self._warm_up = warm_up

    def prepare(self) -> str:
        """Nothing is missing."""
        return importlib.metadata.version("pageray")

    def keeps_running(self, mode: Mode) -> bool:
        """The bare engine is told how many sequences to run at once."""
        return mode is Mode.HTTP

    def open(
        self, mode: Mode, workload: Workload, limit_s: float
    ) -> AbstractContextManager[Session]:
        """Start it."""
        model = str(self._model)
        if mode is Mode.OFFLINE:
            command = [sys.executable, "-m", "tests.benchmarks.offline_pageray"]
            command += [model, self.dtype, str(workload.concurrency), str(KV_CACHE_GIB)]
            return open_worker(Worker(command), limit_s)
        command = [sys.executable, "-m", "deployments.cli", "serve", model, "--dtype", self.dtype]
        command += ["--served-model-name", MODEL_NAME, "--host", HOST, "--port", "{port}"]
        command += ["--kv-cache-memory", f"{KV_CACHE_GIB}GiB"]
        return open_http(Launch(command, ready_path="/ready"), self._warm_up, limit_s)
