"""Do a fault to a cluster, and undo it where it lasts."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tests.chaos.cluster import Cluster
from tests.chaos.roles import Role
from tests.chaos.schedule import Fault, FaultKind


@dataclass(slots=True)
class Blow:
    """A fault that was done; times as of time.monotonic()."""

    fault: Fault
    victim: str
    """In words."""
    struck_s: float
    mended_s: float | None = None
    """When the cluster was whole again."""
    lost_urls: frozenset[str] = frozenset()
    """Own addresses of frontends that are gone with it."""

    @property
    def kind(self) -> FaultKind:
        """What was done."""
        return self.fault.kind


class NoVictim(Exception):
    """There is nothing at present that the fault could be done to."""


def strike(fault: Fault, cluster: Cluster, *, sleep: Callable[[float], None] = time.sleep) -> Blow:
    """Do it; return when it is over, undone if it lasts. Raises NoVictim."""
    role = fault.kind.role
    if not role:
        blow = Blow(fault, "", time.monotonic())
        blow.victim, blow.lost_urls = cluster.isolate_host(fault.lot, fault.kind)
        sleep(fault.duration_s)
        cluster.restore_hosts()
        return blow
    victims = sorted(cluster.processes(role), key=lambda process: process.pid)
    if not victims:
        raise NoVictim(f"no {role} runs")
    victim = victims[int(fault.lot * len(victims))]
    try:
        if not fault.kind.lasts:
            urls = cluster.urls_of(victim) if role == Role.FRONTEND else frozenset()
            blow = Blow(fault, f"pid {victim.pid}", time.monotonic(), lost_urls=urls)
            victim.kill()
            return blow
        blow = Blow(fault, f"pid {victim.pid} for {fault.duration_s:.1f} s", time.monotonic())
        victim.suspend()
    except psutil.NoSuchProcess as error:
        raise NoVictim(f"{role} {victim.pid} had just ended") from error
    sleep(fault.duration_s)
    try:
        # Given up meanwhile or not: what wakes up must not disturb anybody.
        victim.resume()
    except psutil.NoSuchProcess:
        blow.victim += ", killed meanwhile"
    return blow
