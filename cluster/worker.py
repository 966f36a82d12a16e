"""One rank of a tensor-parallel group, as it lives in a Ray actor.

The class is plain; `WorkerActor` is its Ray form. What a rank runs is in `cluster.leader`
(rank 0) and `engine.follower` (the others); both bring torch and are loaded in the rank's
process alone.
"""

import logging
import os
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import ray.util

from cluster.engine_description import EngineDescription
from cluster.messages import Demand
from cluster.network_interface import use_interface_of
from engine.config import EngineConfig
from engine.model_store import resolve_model
from engine.snapshot import EngineSnapshot

if TYPE_CHECKING:
    from cluster.leader import Leader

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every rank of a group is told."""

    model: str
    """As given by the user; each node finds or fetches its own copy."""
    cache_dir: Path
    engine: EngineConfig
    init_method: str
    """Rendezvous of the ranks, `tcp://host:port`; unused by a group of one."""
    token: str
    """Secret that clients of the token server must show."""
    spans_nodes: bool = False
    """Whether ranks of the group are on several nodes."""


class Worker:
    """Starts a rank, then waits for its end. Methods are called by the group's supervisor."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._leader: Leader | None = None

    def rendezvous(self) -> str:
        """Address for the ranks to meet at, on this node."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"tcp://{host}:{probe.getsockname()[1]}"

    def start(self, spec: WorkerSpec) -> EngineDescription | int:
        """Bring the rank up. Rank 0 returns when the whole group serves, others at once.

        Returns the engine's description on rank 0, the process id on the others.
        """
        started = time.monotonic()
        path = resolve_model(
            spec.model, cache_dir=spec.cache_dir, needs_weights=spec.engine.needs_weights
        )
        spec = replace(spec, engine=replace(spec.engine, model_path=path))
        if spec.spans_nodes:
            use_interface_of(ray.util.get_node_ip_address())
        if self._rank > 0:
            threading.Thread(target=self._follow, args=(spec,), daemon=True).start()
            return os.getpid()
        return self._lead(spec, started)

    def watch(self) -> None:
        """Return never while the rank is well; raise what ended it."""
        self._ended.wait()
        raise RuntimeError(f"rank {self._rank} ended: {self._failure!r}") from self._failure

    def ping(self) -> float:
        """Answer, which a process that is stopped or stuck in C code does not.

        Returns the seconds by which the present step is late, 0 if it is not. Rank 0 alone knows:
        no step of its own ends without the others, so a collective that hangs shows there.
        """
        if self._leader is None:
            return 0.0
        snapshot = self._leader.snapshot()
        return max(0.0, snapshot.step_age_s - snapshot.step_limit_s)

    def snapshot(self) -> EngineSnapshot:
        """Newest snapshot of the engine (rank 0)."""
        if self._leader is None:
            raise RuntimeError(f"rank {self._rank} runs no engine")
        return self._leader.snapshot()

    def demand(self) -> Demand:
        """What the frontends hold back because no replica has room (rank 0)."""
        if self._leader is None:
            raise RuntimeError(f"rank {self._rank} runs no engine")
        return self._leader.server.demand()

    def _lead(self, spec: WorkerSpec, started: float) -> EngineDescription:
        found = time.monotonic()
        from cluster.leader import Leader, join_group  # noqa: PLC0415  brings torch

        imported = time.monotonic()
        group = join_group(spec.engine, 0, spec.init_method)
        joined = time.monotonic()
        self._leader = Leader.start(
            spec.engine,
            group,
            host=ray.util.get_node_ip_address(),
            token=spec.token,
            on_failure=self._end,
            on_orphaned=_leave,
        )
        description = self._leader.description
        phases = {
            "find model": found - started,
            "import torch": imported - found,
            "join group": joined - imported,
        }
        return replace(description, phase_times_s=phases | description.phase_times_s)

    def _follow(self, spec: WorkerSpec) -> None:
        try:
            from cluster.leader import join_group  # noqa: PLC0415  brings torch
            from engine.follower import run_follower  # noqa: PLC0415  brings torch

            run_follower(spec.engine, join_group(spec.engine, self._rank, spec.init_method))
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self._failure = error
        self._ended.set()


def _leave() -> None:
    # A supervisor that died took this process along. This one hangs or cannot reach us: if we
    # stayed, nobody would end what the engine has aborted now.
    logger.error("the supervisor of this group is gone, and so are we")
    os._exit(1)


WorkerActor = ray.remote(Worker)
