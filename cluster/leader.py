"""What rank 0 runs beside the model: the engine loop and the token server, a thread each.

Imports torch. `cluster.worker` loads it inside the rank's own process, so that the supervisor
of the group, which only names the worker class, stays light and quick to start.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cluster.engine_description import EngineDescription
from cluster.token_server import TokenServer
from engine.build import build_engine
from engine.canary import run_canary
from engine.config import EngineConfig
from engine.loop import EngineLoop
from engine.parallel import TensorParallel
from engine.snapshot import EngineSnapshot


def join_group(config: EngineConfig, rank: int, init_method: str) -> TensorParallel:
    """Meet the other ranks, as rank `rank`, on the one device that Ray gave this process."""
    device = torch.device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
    return TensorParallel.join(rank, config.tensor_parallel_size, init_method, device)


@dataclass(frozen=True, slots=True)
class Leader:
    """A serving engine."""

    loop: EngineLoop
    server: TokenServer
    description: EngineDescription

    @classmethod
    def start(
        cls,
        config: EngineConfig,
        group: TensorParallel,
        *,
        host: str,
        token: str,
        on_failure: Callable[[BaseException], None],
        on_orphaned: Callable[[], None],
    ) -> "Leader":
        """Load the model on all ranks, open the token server on `host` and start to step.

        See `EngineLoop` and `TokenServer` for the callbacks.
        """
        engine = build_engine(config, group)
        began_s = time.monotonic()
        run_canary(engine.core)
        canary_s = time.monotonic() - began_s
        io_loop = asyncio.new_event_loop()
        threading.Thread(target=io_loop.run_forever, name="token-server", daemon=True).start()
        loop = EngineLoop(
            engine.core,
            on_step=lambda output, snapshot: server.on_step(output, snapshot),
            on_failure=on_failure,
        )
        server = TokenServer(loop, token=token, host=host, on_orphaned=on_orphaned)
        address = asyncio.run_coroutine_threadsafe(server.start(), io_loop).result()
        loop.start()
        report = engine.report
        return cls(
            loop,
            server,
            EngineDescription(
                address=address,
                token=token,
                model_name=config.model_name,
                max_model_len=report.memory.max_model_len,
                tensor_parallel_size=config.tensor_parallel_size,
                device=report.device,
                dtype=report.dtype,
                memory_plan=str(report.memory),
                phase_times_s=report.phase_s | {"canary": canary_s},
                process_ids=[os.getpid()],
            ),
        )

    def snapshot(self) -> EngineSnapshot:
        """Newest snapshot of the engine."""
        return self.loop.snapshot()
