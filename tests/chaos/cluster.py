"""What a chaos run needs of a cluster, on one machine or on several hosts."""

from collections.abc import Collection, Sequence
from typing import Protocol

import psutil

from tests.chaos.books import Status
from tests.chaos.schedule import FaultKind


class Cluster(Protocol):
    """A running service. All of this may be called from any thread."""

    @property
    def urls(self) -> Sequence[str]:
        """Where clients go, to HAProxy."""

    def frontend_urls(self) -> list[str]:
        """Each frontend's own address, past HAProxy: who goes there knows whose client it is."""

    def urls_of(self, process: psutil.Process) -> frozenset[str]:
        """Own addresses of a frontend; none of another process."""

    @property
    def num_frontends(self) -> int:
        """Frontends of the whole cluster."""

    @property
    def kinds(self) -> Collection[FaultKind]:
        """What can be done to it."""

    def processes(self, role: str) -> list[psutil.Process]:
        """Those with a role of tests/chaos/roles.py."""

    def statuses(self) -> list[Status]:
        """What /status of every frontend says that answers."""

    def missing(self) -> str:
        """What is not there, or does not serve; empty: the cluster is whole. Brings back hosts."""

    def isolate_host(self, lot: float, kind: FaultKind) -> tuple[str, frozenset[str]]:
        """Cut a host off, or let it leave; tell which, and the addresses of its frontends."""

    def restore_hosts(self) -> None:
        """Undo it."""
