"""Faults reach the process they are meant for, and are undone."""

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.chaos.books import Status
from tests.chaos.cluster import Cluster
from tests.chaos.schedule import Fault, FaultKind
from tests.chaos.strike import NoVictim, strike
from tests.integration.serving import wait_until


class FakeCluster:
    """Some sleeping processes, and a host that notes what is done to it."""

    urls = ()
    num_frontends = 1
    kinds = tuple(FaultKind)
    role = ""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes = processes
        self.notes: list[str] = []

    def processes(self, role: str) -> list[psutil.Process]:
        return self._processes if role in {"rank", self.role} else []

    def missing(self) -> str:
        return ""

    def frontend_urls(self) -> list[str]:
        return []

    def urls_of(self, process: psutil.Process) -> frozenset[str]:
        return frozenset({f"http://h:{process.pid}"})

    def isolate_host(self, lot: float, kind: FaultKind) -> tuple[str, frozenset[str]]:
        self.notes.append(f"{kind.value} {lot}")
        return "b", frozenset({"http://b"})

    def restore_hosts(self) -> None:
        self.notes.append("restored")

    def statuses(self) -> list[Status]:
        return []


@pytest.fixture
def sleepers() -> Iterator[list[psutil.Process]]:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    children = [subprocess.Popen(command) for _ in range(3)]
    yield sorted((psutil.Process(child.pid) for child in children), key=lambda each: each.pid)
    for child in children:
        child.kill()
        child.wait()


def fault(kind: FaultKind, lot: float = 0.0, duration_s: float = 0.0) -> Fault:
    return Fault(kind, pause_s=0.0, lot=lot, duration_s=duration_s)


def test_the_lot_says_who_is_killed(sleepers: list[psutil.Process]) -> None:
    cluster: Cluster = FakeCluster(sleepers)
    blow = strike(fault(FaultKind.KILL_RANK, 0.99), cluster)
    assert blow.victim == f"pid {sleepers[2].pid}"
    assert sleepers[2].wait(5) is not None
    assert [process.is_running() for process in sleepers[:2]] == [True, True]


def test_who_is_stopped_goes_on_later(sleepers: list[psutil.Process]) -> None:
    seen = []

    def sleep(seconds: float) -> None:
        wait_until(lambda: sleepers[1].status() == psutil.STATUS_STOPPED, 5, "stopped")
        seen.append(seconds)

    strike(fault(FaultKind.STOP_RANK, 0.5, 3.0), FakeCluster(sleepers), sleep=sleep)
    assert seen == [3.0]
    wait_until(lambda: sleepers[1].status() != psutil.STATUS_STOPPED, 5, "going on")


def test_who_is_killed_while_stopped_is_no_surprise(sleepers: list[psutil.Process]) -> None:
    def sleep(_seconds: float) -> None:
        sleepers[0].kill()
        sleepers[0].wait(5)

    blow = strike(fault(FaultKind.STOP_RANK), FakeCluster(sleepers), sleep=sleep)
    assert "killed meanwhile" in blow.victim


def test_a_host_is_restored_after_its_time() -> None:
    cluster = FakeCluster([])
    sleep = cluster.notes.append
    blow = strike(
        fault(FaultKind.CUT_HOST, 0.5, 4.0), cluster, sleep=lambda seconds: sleep(str(seconds))
    )
    assert cluster.notes == ["host is cut off 0.5", "4.0", "restored"]
    assert blow.victim == "b"
    assert blow.lost_urls == {"http://b"}


def test_a_frontend_takes_its_addresses_with_it(sleepers: list[psutil.Process]) -> None:
    cluster = FakeCluster(sleepers)
    assert strike(fault(FaultKind.KILL_RANK), cluster).lost_urls == frozenset()
    cluster.role = "frontend"
    blow = strike(fault(FaultKind.KILL_FRONTEND, 0.5), cluster)
    assert blow.lost_urls == {f"http://h:{sleepers[1].pid}"}


def test_without_a_victim_there_is_no_fault() -> None:
    with pytest.raises(NoVictim, match="no frontend"):
        strike(fault(FaultKind.KILL_FRONTEND), FakeCluster([]))
