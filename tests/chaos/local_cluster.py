"""A cluster on one machine: `pageray serve` with replicas of a tiny model."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.chaos.schedule import FaultKind
from tests.integration.serving import START_TIMEOUT_S, Serving, wait_until
from tests.oracle import make_checkpoint

MODEL = "tiny"
NUM_KV_BYTES = "8MiB"
_TITLES = {
    "rank": "ray::Worker",
    "replica": f"ray::ServeReplica:pageray:Replica-{MODEL}",
    "frontend": "ray::ServeReplica:pageray:Frontend",
    "controller": "ray::ServeController",
}
NUM_QUIET_LOOKS, LOOK_PERIOD_S = 3, 0.5
FRESH_S = 2.0
"""Age of the report of a replica that is well."""


def make_model(folder: Path, tokenizer_from: Path) -> Path:
    """Save a small random Llama that runs deterministically on CPU; return its folder."""
    make_checkpoint(
        folder,
        "llama",
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        max_position_embeddings=2048,
        eos_token_id=2,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder)
    return folder


class LocalCluster:
    """See Cluster. A raylet dies with its machine, so none is killed here."""

    model = MODEL
    kinds = (
        FaultKind.KILL_RANK,
        FaultKind.STOP_RANK,
        FaultKind.KILL_REPLICA,
        FaultKind.STOP_REPLICA,
        FaultKind.KILL_FRONTEND,
        FaultKind.STOP_FRONTEND,
        FaultKind.KILL_PROXY,
        FaultKind.KILL_CONTROLLER,
    )

    def __init__(
        self, model: Path, log: Path, *, num_replicas: int = 2, num_frontends: int = 2
    ) -> None:
        self._num_replicas = num_replicas
        self._num_frontends = num_frontends
        self._serving = Serving(
            model,
            *("--served-model-name", MODEL, "--replicas", str(num_replicas)),
            *("--num-frontends", str(num_frontends), "--num-threads", "1"),
            *("--kv-cache-memory", NUM_KV_BYTES, "--dtype", "float32", "--deterministic"),
            log=log,
        )
        self.log = log

    def wait_ready(self) -> None:
        """Wait until it is whole for the first time."""
        self._serving.wait_ready()
        # HAProxy starts anew with every deployment that comes up, and knows no path meanwhile.
        for _ in range(NUM_QUIET_LOOKS):
            wait_until(self.is_whole, START_TIMEOUT_S, "whole")
            time.sleep(LOOK_PERIOD_S)

    @property
    def urls(self) -> Sequence[str]:
        """See Cluster."""
        return [self._serving.url]

    def processes(self, role: str) -> list[psutil.Process]:
        """See Cluster."""
        if role == "proxy":
            return [p for p in self._serving.processes() if _name(p) == "haproxy"]
        return self._serving.titled(_TITLES[role])

    def is_whole(self) -> bool:
        """See Cluster."""
        if (
            len(self.processes("replica")) != self._num_replicas
            or len(self.processes("rank")) != self._num_replicas
            or len(self.processes("frontend")) != self._num_frontends
        ):
            return False
        try:
            # Whichever frontend answers: each has to know.
            return all(map(self._are_all_well, (self._status() for _ in range(4))))
        except (httpx2.HTTPError, LookupError):
            return False

    def _status(self) -> dict[str, Any]:
        # A connection each, for another frontend each.
        with httpx2.Client(base_url=self._serving.url, timeout=5) as client:
            response = client.get("/status")
            response.raise_for_status()
            [model] = response.json()["models"]
            found: dict[str, Any] = model
            return found

    def _are_all_well(self, status: dict[str, Any]) -> bool:
        replicas = status["replicas"]
        return len(replicas) == self._num_replicas and all(
            replica["connected"] and replica["state"] == "serving" and replica["age_s"] < FRESH_S
            for replica in replicas
        )

    def isolate_host(self, lot: float, kind: FaultKind) -> str:
        """There is one host alone."""
        raise NotImplementedError

    def restore_hosts(self) -> None:
        """There is one host alone."""
        raise NotImplementedError

    def stop(self) -> None:
        """See Cluster."""
        self._serving.stop()


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
