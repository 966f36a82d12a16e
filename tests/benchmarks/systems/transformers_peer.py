"""transformers: its server with continuous batching, that batching offline, and plain generate."""

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from tests.benchmarks.failure import PeerUnavailable
from tests.benchmarks.http_session import Launch, open_http
from tests.benchmarks.offline_session import Worker, open_worker
from tests.benchmarks.peer_store import once, run
from tests.benchmarks.server import HOST
from tests.benchmarks.systems.system import Mode, Session
from tests.benchmarks.workload import Ask, Workload

SERVER_NEEDS = "accelerate==1.15.0"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # Without it the kernel may leave both compute threads on one core for many seconds.
    "OMP_PROC_BIND": "true",
}


class Transformers:
    """One way of transformers to run many requests: `continuous` or `padded`."""

    def __init__(
        self, way: str, model: Path, dtype: str | None, warm_up: list[Ask], store: Path
    ) -> None:
        self.name = "transformers" if way == "continuous" else "padded"
        self.dtype = dtype or "float32"
        self._way = way
        self._model = model
        self._warm_up = warm_up
        self._extras = store / "transformers"

    def prepare(self) -> str:
        """It lies beside PageRay, whose tests need it; only its server wants one package more."""
        try:
            version = importlib.metadata.version("transformers")
        except importlib.metadata.PackageNotFoundError:
            raise PeerUnavailable("transformers is not installed: pip install '.[dev]'") from None
        once(self._extras / "installed", SERVER_NEEDS, self._install)
        return version

    def keeps_running(self, mode: Mode) -> bool:
        """Offline, loading the model is quick, and every workload gets a clean process."""
        return mode is Mode.HTTP

    def open(
        self, mode: Mode, workload: Workload, limit_s: float
    ) -> AbstractContextManager[Session]:
        """Start it."""
        model = str(self._model)
        if mode is Mode.OFFLINE:
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.benchmarks.offline_transformers",
            ]
            command += [self._way, model, self.dtype]
            return open_worker(Worker(command, ENVIRONMENT), limit_s)
        if self._way != "continuous":
            raise PeerUnavailable("plain generate has no server")
        command = [sys.executable, "-W", "ignore", "-m", "transformers.cli.transformers", "serve"]
        command += [model, "--continuous-batching", "--attn-implementation", "sdpa"]
        command += ["--device", "cpu", "--dtype", self.dtype]
        command += ["--cb-num-blocks", "128", "--cb-max-batch-tokens", "2048"]
        command += ["--host", HOST, "--port", "{port}"]
        environment = ENVIRONMENT | {"PYTHONPATH": str(self._extras)}
        launch = Launch(command, environment, fields=self._by_text)
        return open_http(launch, self._warm_up, limit_s)

    def _install(self) -> None:
        """Put it where only this peer sees it. The rest of what it needs is there already."""
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
        run([*pip, "--no-deps", "--upgrade", "--target", self._extras, SERVER_NEEDS])

    def _by_text(self, ask: Ask) -> Mapping[str, object]:
        """Its dialect: text only, and an end of text that no token is."""
        generation = {"eos_token_id": -1, "pad_token_id": 0, "do_sample": False}
        return {
            "model": str(self._model),
            "prompt": ask.text,
            "generation_config": json.dumps(generation),
        }
