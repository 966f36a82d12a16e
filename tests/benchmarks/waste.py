"""Memory waste of the three systems on real lengths: the scheduler and pool run, the model is
simulated, so lengths need not be scaled to what this machine can compute."""

from pathlib import Path

from engine.config import EngineConfig
from tests.benchmarks.allocation import System
from tests.benchmarks.conversation import Scale
from tests.benchmarks.drive import Run, Server
from tests.benchmarks.traced_executor import SimulatedExecutor
from tests.fakes import FakeClock

# About what 40 to 80 GB leave LLaMA-2-7B at its full context.
NUM_CONTEXTS = 16
CONCURRENCY = 200


def simulate(
    system: System, scale: Scale, *, block_size: int = 16, max_requests: int | None = None
) -> Run:
    """Serve the sample from a memory of 16 whole contexts, 200 requests in flight."""
    config = EngineConfig(
        model_path=Path("simulated"),
        model_name="simulated",
        block_size=block_size,
        enable_prefix_caching=False,
    )
    clock = FakeClock()
    executor = SimulatedExecutor(NUM_CONTEXTS * scale.context // block_size, clock)
    server = Server(system, config, executor, context=scale.context, vocab_size=32_000, clock=clock)
    return server.run_closed(scale.conversations()[:max_requests], CONCURRENCY)
