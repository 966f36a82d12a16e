"""A rank that runs the paced engine in place of a model, and the replica that has it."""

import asyncio
import os
import threading
import time

import ray
import ray.util
from ray import serve

from cluster.engine_description import EngineDescription
from cluster.leader import Leader
from cluster.token_server import TokenServer
from cluster.worker import Worker, WorkerSpec
from deployments.replica import Replica
from engine.loop import EngineLoop
from tests.benchmarks.paced.engine import MODELS, max_model_len, paced_core


class PacedWorker(Worker):
    """Rank 0 of a group of one. The name that its model is served under chooses the pace."""

    def _lead(self, spec: WorkerSpec, started: float) -> EngineDescription:
        model = MODELS[spec.engine.model_name]
        io_loop = asyncio.new_event_loop()
        threading.Thread(target=io_loop.run_forever, name="token-server", daemon=True).start()
        loop = EngineLoop(
            paced_core(model),
            on_step=lambda output, snapshot: server.on_step(output, snapshot),
            on_failure=self._end,
        )
        host = ray.util.get_node_ip_address()
        server = TokenServer(loop, token=spec.token, host=host)
        address = asyncio.run_coroutine_threadsafe(server.start(), io_loop).result()
        loop.start()
        description = EngineDescription(
            address=address,
            token=spec.token,
            model_name=spec.engine.model_name,
            max_model_len=max_model_len(model),
            tensor_parallel_size=1,
            device="none",
            dtype="none",
            memory_plan="",
            phase_times_s={"start": time.monotonic() - started},
            process_ids=[os.getpid()],
        )
        self._leader = Leader(loop, server, description)
        return description


class PacedReplica(Replica):
    """The supervisor of such a group."""

    rank_actor = ray.remote(PacedWorker)


PacedReplicaDeployment = serve.deployment(name="Replica")(PacedReplica)
