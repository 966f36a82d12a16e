"""The Replica deployment: supervisor of one tensor-parallel group.

Holds one unary call per request open until the request ends, so that Serve knows what is in
flight. The request itself goes to rank 0 on the frontend's token stream as well, which is quicker,
and the tokens come back that way. Dies with its group.
"""

import asyncio
import dataclasses
import logging
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray import serve
from ray.util import get_current_placement_group

from cluster.autoscaling.demand import metrics_of
from cluster.messages import WireError
from cluster.submit_client import SubmitClient
from cluster.tp_group import GroupSpec, TPGroup
from cluster.worker import WorkerActor
from deployments.args import ModelArgs
from deployments.replica_gauges import ReplicaGauges
from deployments.start_trace import trace_start
from deployments.trace_export import TraceExport
from engine.errors import PageRayError
from engine.request import GenerateRequest

logger = logging.getLogger("ray.serve")

SNAPSHOT_TIMEOUT_S = 3.0


class Replica:
    """Starts a group, passes requests on to it and answers for its health."""

    rank_actor: Any = WorkerActor
    """What each rank of the group is."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: ModelArgs, cache_dir: Path, trace_export: TraceExport | None = None
    ) -> None:
        began_s = time.monotonic()
        placement_group = get_current_placement_group()
        if placement_group is None:
            raise RuntimeError("Replica runs only in the placement group that Serve gives it")
        spec = GroupSpec(
            model=args.model,
            cache_dir=cache_dir,
            engine=args.engine_config(device=args.device),
            num_cpus_per_rank=1,
            num_gpus_per_rank=1 if args.device == "cuda" else 0,
        )
        self._group = await TPGroup.start(spec, placement_group, self.rank_actor)
        description = self._group.description
        self._submit = SubmitClient(
            description.address,
            token=description.token,
            peer_id=_own_id(),
        )
        await self._submit.connect()
        self._cold_start_s = time.monotonic() - began_s
        self._gauges = ReplicaGauges(args.model_name)
        self._watch = asyncio.create_task(self._die_with_group())
        logger.info("serving; %s", description.phase_times_s)
        if trace_export is not None:
            # In a thread, and nobody waits for it: the receiver may be away.
            self._tracing = asyncio.create_task(
                asyncio.to_thread(
                    trace_start,
                    trace_export,
                    _own_id(),
                    args.model_name,
                    description.phase_times_s,
                    self._cold_start_s,
                )
            )

    async def generate(self, frontend_id: str, request: GenerateRequest) -> WireError | None:
        """Hand the request to the engine, unless its frontend has; return once it has ended, or
        why it was refused.

        Errors are returned, not raised: Ray would wrap them in a class of its own making.
        """
        try:
            await self._submit.submit(frontend_id, request)
        except PageRayError as error:
            return WireError.from_error(error)
        return None

    async def describe(self) -> dict[str, Any]:
        """The engine's description, as a dict."""
        return dataclasses.asdict(self._group.description)

    def record_replica_metadata(self) -> dict[str, Any]:
        """What every router of this deployment learns about this replica (Serve hook)."""
        description = self._group.description
        return {"address": description.address, "token": description.token}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Numbers for the autoscaling policy (Serve hook)."""
        async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
            snapshot, held = await asyncio.gather(self._group.snapshot(), self._group.demand())
        told = metrics_of(snapshot, cold_start_s=self._cold_start_s)
        return told | msgspec.structs.asdict(held)

    async def check_health(self) -> None:
        """Raise when rank 0 does not answer (Serve hook); `_die_with_group` watches the rest."""
        self._gauges.show(await asyncio.wait_for(self._group.snapshot(), SNAPSHOT_TIMEOUT_S))

    async def _die_with_group(self) -> None:
        losses = [
            asyncio.create_task(self._group.wait_lost()),
            # Without it the engine has aborted all that runs.
            asyncio.create_task(self._submit.wait_lost()),
        ]
        done, _ = await asyncio.wait(losses, return_when=asyncio.FIRST_COMPLETED)
        loss = next(iter(done))
        reason = loss.exception() or loss.result()
        logger.error("%s; the group is rebuilt as one unit", reason)
        self._group.kill()
        # Serve would need three failed health checks to notice; a dead actor it sees at once.
        # Every call in flight then fails in its frontend, which places the request again.
        os._exit(1)

    def __del__(self) -> None:
        """End the group with the supervisor, once Serve has drained it."""
        watch = getattr(self, "_watch", None)
        if watch is not None:
            watch.cancel()  # the group is not lost
        group = getattr(self, "_group", None)
        if group is not None and ray.is_initialized():
            group.kill()


def _own_id() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


ReplicaDeployment = serve.deployment(name="Replica")(Replica)
