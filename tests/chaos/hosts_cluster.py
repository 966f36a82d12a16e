"""A cluster on several hosts, whose hosts can be lost too."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.chaos.books import Status, missing_in
from tests.chaos.live_cluster import HEAD, INGRESS_PORTS, LiveCluster
from tests.chaos.local_cluster import is_open
from tests.chaos.loopback_hosts import LoopbackHosts
from tests.chaos.model import MODEL_OPTIONS
from tests.chaos.namespace_hosts import NamespaceHosts
from tests.chaos.roles import Role, listening_ports
from tests.chaos.schedule import FaultKind


class HostsCluster:
    """See Cluster; a context manager. The head's host stays: who loses it loses Ray.

    Every host has room for one replica and one frontend, and has one of each when all is well.
    """

    def __init__(
        self,
        model: Path,
        *,
        num_hosts: int = 2,
        make_hosts: type[NamespaceHosts] | type[LoopbackHosts] = NamespaceHosts,
    ) -> None:
        self._num_hosts = self.num_frontends = num_hosts
        self.kinds = tuple(
            kind for kind in FaultKind if make_hosts.can_cut or kind is not FaultKind.CUT_HOST
        )
        self._live = LiveCluster(
            model,
            *MODEL_OPTIONS,
            num_hosts=num_hosts,
            num_replicas=num_hosts,
            num_frontends=num_hosts,
            make_hosts=make_hosts,
        )
        self._cut: list[int] = []

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    @property
    def urls(self) -> Sequence[str]:
        """See Cluster."""
        return self._live.urls

    def processes(self, role: str) -> list[psutil.Process]:
        """See Cluster."""
        return self._live.processes(role)

    def frontend_urls(self) -> list[str]:
        """See Cluster."""
        return self._live.frontend_urls()

    def urls_of(self, process: psutil.Process) -> frozenset[str]:
        """See Cluster."""
        hosts = [h for h in self._live.hosts if process in self._live.processes(Role.FRONTEND, h)]
        ports = listening_ports(process) & set(INGRESS_PORTS)
        addresses = [self._live.hosts.address(host) for host in hosts]
        return frozenset(f"http://{address}:{port}" for address in addresses for port in ports)

    def statuses(self) -> list[Status]:
        """See Cluster."""
        return self._live.status()

    def missing(self) -> str:
        """See Cluster."""
        for host in self._live.hosts:
            # A host that was taken for dead while it was cut off has to begin anew.
            if host != HEAD and not self._live.processes(Role.RAYLET, host):
                self._live.rejoin(host)
                return f"host {host} has just come back"
        wanted = dict.fromkeys((Role.REPLICA, Role.RANK), self._num_hosts)
        for role, count in {**wanted, Role.CONTROLLER: 1}.items():
            if (num_found := len(self._live.processes(role))) != count:
                return f"{num_found} {role} processes of {count}"
        for url in self.urls:
            if not is_open(url):
                return f"{url} does not answer"
        return missing_in(
            self.statuses(), num_frontends=self.num_frontends, num_replicas=self._num_hosts
        )

    def isolate_host(self, lot: float, kind: FaultKind) -> tuple[str, frozenset[str]]:
        """See Cluster."""
        others = [host for host in self._live.hosts if host != HEAD]
        host = others[int(lot * len(others))]
        frontends = self._live.processes(Role.FRONTEND, host)
        urls = frozenset(url for frontend in frontends for url in self.urls_of(frontend))
        if kind is FaultKind.CUT_HOST:
            self._live.cut(host)
            self._cut.append(host)
        elif kind is FaultKind.LEAVE_HOST:
            self._live.hosts.end_processes(host)
        else:
            [raylet] = self._live.processes(Role.RAYLET, host)
            self._live.kill(raylet)
        return f"host {host}", urls

    def restore_hosts(self) -> None:
        """See Cluster; `missing` lets who died begin anew."""
        while self._cut:
            self._live.heal(self._cut.pop())
