"""The worker actors of one tensor-parallel group: started, watched and ended as one unit."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.engine_description import EngineDescription
from cluster.messages import Demand
from cluster.worker import WorkerActor, WorkerSpec
from engine.config import EngineConfig
from engine.snapshot import EngineSnapshot

RANK_ENVIRONMENT = {"RAY_worker_niceness": "0"}
"""Ray runs its actors at a niceness of 15, far behind its own daemons: on cores that compute all
the time every daemon's turn would cut into a step. 0 is relative to Ray's own niceness."""
PING_PERIOD_S = 0.5
PING_TIMEOUT_S = 4.0
PING_LOOKS = 4
"""So a stopped process is noticed within 4.5 s, and a step that hangs so long after its limit
(engine/step_limit.py), which is 4 s for most."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """What a group serves and what each rank takes of its node."""

    model: str
    cache_dir: Path
    engine: EngineConfig
    num_cpus_per_rank: float
    num_gpus_per_rank: float


class TPGroup:
    """One rank per bundle 1..size of a placement group; bundle 0 is the supervisor's own."""

    def __init__(self, workers: Sequence[Any], description: EngineDescription) -> None:
        self._workers = workers
        self.description = description

    @classmethod
    async def start(
        cls, spec: GroupSpec, placement_group: PlacementGroup, actor: Any = WorkerActor
    ) -> "TPGroup":
        """Start every rank, an `actor` each, and wait until the engine serves.

        Raises what any rank raised.
        """
        nodes: dict[int, str] = placement_group_table(placement_group)["bundles_to_node_id"]
        bundles = _bundles_by_node(nodes)
        workers: list[Any] = [
            actor.options(
                num_cpus=spec.num_cpus_per_rank,
                num_gpus=spec.num_gpus_per_rank,
                max_restarts=0,
                # watch() and start() each hold a thread for their whole time.
                max_concurrency=8,
                runtime_env={"env_vars": RANK_ENVIRONMENT},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group,
                    placement_group_bundle_index=bundle,
                    placement_group_capture_child_tasks=True,
                ),
            ).remote(rank)
            for rank, bundle in enumerate(bundles)
        ]
        worker_spec = WorkerSpec(
            model=spec.model,
            cache_dir=spec.cache_dir,
            engine=spec.engine,
            init_method=await workers[0].rendezvous.remote(),
            token=secrets.token_hex(16),
            spans_nodes=len({nodes[bundle] for bundle in bundles}) > 1,
        )
        starts = [worker.start.remote(worker_spec) for worker in workers]
        lost = [asyncio.ensure_future(_wait(worker.watch.remote())) for worker in workers[1:]]
        try:
            # A rank that dies while the others load would leave them waiting for it for ever.
            first = asyncio.gather(*(_wait(start) for start in starts))
            await asyncio.wait([first, *lost], return_when=asyncio.FIRST_COMPLETED)
            for watch in lost:
                if watch.done() and not first.done():
                    watch.result()
            description, *process_ids = await first
        except BaseException:
            kill(workers)
            raise
        finally:
            for watch in lost:
                watch.cancel()
        description = replace(description, process_ids=[*description.process_ids, *process_ids])
        return cls(workers, description)

    async def wait_lost(self) -> str:
        """Return why, once any rank has died, failed or stopped answering."""
        watches = [
            asyncio.ensure_future(watch(rank, worker))
            for rank, worker in enumerate(self._workers)
            for watch in (_watch, _ping)
        ]
        done, pending = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return next(iter(done)).result()

    async def snapshot(self) -> EngineSnapshot:
        """Newest snapshot of the engine."""
        snapshot: EngineSnapshot = await self._workers[0].snapshot.remote()
        return snapshot

    async def demand(self) -> Demand:
        """What the frontends hold back because no replica has room."""
        demand: Demand = await self._workers[0].demand.remote()
        return demand

    def kill(self) -> None:
        """End every rank at once."""
        kill(self._workers)


def kill(workers: Sequence[Any]) -> None:
    """SIGKILL every worker; a rank stuck in a collective obeys nothing milder."""
    for worker in workers:
        ray.kill(worker)


async def _wait(reference: Any) -> Any:
    return await reference


async def _watch(rank: int, worker: Any) -> str:
    try:
        await worker.watch.remote()
    except Exception as error:  # noqa: BLE001  death, lost node, failed step: all the same
        return f"rank {rank} is lost: {error}"
    return f"rank {rank} left"


async def _ping(rank: int, worker: Any) -> str:
    while True:
        answer = asyncio.ensure_future(_wait(worker.ping.remote()))
        for _ in range(PING_LOOKS):
            # In several looks: if it was us who stood still, that was no more than one of them.
            await asyncio.wait({answer}, timeout=PING_TIMEOUT_S / PING_LOOKS)
        if not answer.done():
            answer.cancel()
            return f"rank {rank} has not answered for {PING_TIMEOUT_S:g} s"
        try:
            late_s = answer.result()
        except Exception as error:  # noqa: BLE001  as in _watch
            return f"rank {rank} is lost: {error}"
        if late_s > 0:
            return f"the engine has work, and its step is late by {late_s:.1f} s"
        await asyncio.sleep(PING_PERIOD_S)


def _bundles_by_node(nodes: Mapping[int, str]) -> list[int]:
    # Neighbouring ranks talk most, and Ray does not promise that neighbouring bundles share a
    # node: take the supervisor's node first, then node by node.
    own = nodes[0]
    ranks = [bundle for bundle in sorted(nodes) if bundle > 0]
    return sorted(ranks, key=lambda bundle: (nodes[bundle] != own, nodes[bundle], bundle))
