"""A cluster on one machine: `pageray serve` with replicas of a tiny model."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2
import psutil

from tests.chaos.books import Status, missing_in
from tests.chaos.live_cluster import INGRESS_PORTS
from tests.chaos.model import MODEL_OPTIONS
from tests.chaos.roles import Role, listening_ports, select
from tests.chaos.schedule import FaultKind
from tests.integration.serving import START_TIMEOUT_S, Serving, wait_until

STATUS_TIMEOUT_S = 5.0
OPEN_TIMEOUT_S = 2.0
NUM_QUIET_LOOKS, LOOK_PERIOD_S = 3, 0.5


class LocalCluster:
    """See Cluster; a context manager. Its only raylet is the head's, so none is killed here."""

    kinds = (
        FaultKind.KILL_RANK,
        FaultKind.STOP_RANK,
        FaultKind.KILL_REPLICA,
        FaultKind.STOP_REPLICA,
        FaultKind.KILL_FRONTEND,
        FaultKind.STOP_FRONTEND,
        FaultKind.KILL_HAPROXY,
        FaultKind.KILL_CONTROLLER,
    )

    def __init__(
        self,
        model: Path,
        log: Path,
        *options: str,
        num_replicas: int = 2,
        num_frontends: int = 2,
        tensor_parallel_size: int = 1,
    ) -> None:
        self._num_replicas = num_replicas
        self._num_ranks = num_replicas * tensor_parallel_size
        self.num_frontends = num_frontends
        self._serving = Serving(
            model,
            *MODEL_OPTIONS,
            *("--replicas", str(num_replicas), "--num-frontends", str(num_frontends)),
            *("--tensor-parallel-size", str(tensor_parallel_size)),
            *options,
            log=log,
        )

    def __enter__(self) -> Self:
        try:
            self._serving.wait_ready()
            # HAProxy starts anew with every deployment that comes up, and knows no path meanwhile.
            for _ in range(NUM_QUIET_LOOKS):
                wait_until(self.is_whole, START_TIMEOUT_S, "whole")
                time.sleep(LOOK_PERIOD_S)
        except BaseException:
            self._serving.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._serving.stop()

    @property
    def urls(self) -> Sequence[str]:
        """See Cluster."""
        return [self._serving.url]

    def processes(self, role: str) -> list[psutil.Process]:
        """See Cluster."""
        return select(self._serving.processes(), Role(role))

    def frontend_urls(self) -> list[str]:
        """See Cluster."""
        return [url for each in self.processes(Role.FRONTEND) for url in self.urls_of(each)]

    def urls_of(self, process: psutil.Process) -> frozenset[str]:
        """See Cluster."""
        ports = listening_ports(process) & set(INGRESS_PORTS)
        return frozenset(f"http://127.0.0.1:{port}" for port in ports)

    def statuses(self) -> list[Status]:
        """See Cluster."""
        found = []
        with httpx2.Client(timeout=STATUS_TIMEOUT_S, trust_env=False) as client:
            for url in self.frontend_urls():
                with suppress(httpx2.HTTPError):
                    response = client.get(f"{url}/status")
                    found.append(response.raise_for_status().json())
        return found

    def missing(self) -> str:
        """See Cluster."""
        started = self._serving.processes()
        wanted = {Role.REPLICA: self._num_replicas, Role.RANK: self._num_ranks}
        wanted[Role.CONTROLLER] = 1
        for role, count in wanted.items():
            if (num_found := len(select(started, role))) != count:
                return f"{num_found} {role} processes of {count}"
        if not is_open(self._serving.url):
            return "the endpoint does not answer"
        return missing_in(
            self.statuses(), num_frontends=self.num_frontends, num_replicas=self._num_replicas
        )

    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing()

    def isolate_host(self, lot: float, kind: FaultKind) -> tuple[str, frozenset[str]]:
        """There is one host alone."""
        raise NotImplementedError

    def restore_hosts(self) -> None:
        """There is one host alone."""
        raise NotImplementedError


def is_open(url: str) -> bool:
    """Whether a request gets through; a proxy that runs need not listen yet."""
    try:
        return httpx2.get(f"{url}/ready", timeout=OPEN_TIMEOUT_S, trust_env=False).is_success
    except httpx2.HTTPError:
        return False
