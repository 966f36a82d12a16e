"""Gives the compute threads of this process cores of their own, on CPU.

OpenMP threads wait for each other by spinning. Where the kernel puts two of them on one core,
each spins through the other's time slice, and a step takes twenty times as long; on a two-core
machine this was seen to last for twenty seconds. Threads that stay on a core each cannot meet.
"""

import ctypes
import os
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_OpenMPBody = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class ComputeThreads:
    """Claims a core for each thread; without enough unclaimed cores the kernel decides."""

    def __init__(self, num_threads: int, *, scope: str = "pageray") -> None:
        """Claim the cores. `scope`: who competes for them; all engines of a machine do."""
        cores = _allowed_cores() if num_threads > 1 else set()
        self._claims = _claim_cores(cores, num_threads, scope)
        weakref.finalize(self, _release, list(self._claims.values()))

    def place(self) -> None:
        """Keep the calling thread, and those that OpenMP has for it, on the claimed cores.

        Threads that the caller starts later are born on its core, so it should start none.
        """
        if not self._claims or os.sched_getaffinity(0) == {next(iter(self._claims))}:
            return
        team = _openmp_team(len(self._claims))
        # A caller kept to one core while a helper roams could only meet it more often.
        if len(team) == len(self._claims):
            for thread_id, core in zip(team, self._claims, strict=True):
                os.sched_setaffinity(thread_id, {core})

    @contextmanager
    def placed(self) -> Iterator[None]:
        """`place` the caller for a while; afterwards it may run and start threads anywhere."""
        with caller_unmoved():
            self.place()
            yield


@contextmanager
def caller_unmoved() -> Iterator[None]:
    """Put the calling thread back to where it might run before, whatever placed it meanwhile."""
    cores = _allowed_cores()
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def _claim_cores(cores: set[int], num_cores: int, scope: str) -> dict[int, socket.socket]:
    """Claim cores against other engines on this machine: core to the socket that holds it.

    A name in Linux' abstract socket space belongs to one process and goes with it.
    """
    claims: dict[int, socket.socket] = {}
    for core in sorted(cores):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0{scope}-core-{core}")
        except OSError:  # another engine has it
            claim.close()
            continue
        claims[core] = claim
        if len(claims) == num_cores:
            return claims
    _release(list(claims.values()))
    return {}


def _release(claims: list[socket.socket]) -> None:
    for claim in claims:
        claim.close()


def _allowed_cores() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set()


def _openmp_team(num_threads: int) -> list[int]:
    """Thread ids of the caller and the helpers that OpenMP has for it, the caller's first.

    The threads name themselves. Those that are new after parallel work would not do: the caller
    may have had helpers before, and others start threads meanwhile. Empty where torch computes
    without OpenMP.
    """
    openmp = ctypes.CDLL(torch._C.__file__)  # its symbols are found through torch, which links it
    if not hasattr(openmp, "GOMP_parallel"):
        return []
    team: dict[int, int] = {}

    def name_itself(_: int | None) -> None:
        team[openmp.omp_get_thread_num()] = threading.get_native_id()

    openmp.GOMP_parallel(_OpenMPBody(name_itself), None, ctypes.c_uint(num_threads), 0)
    return [team[i] for i in sorted(team)]
