"""The three systems on one real model: weights, kernels and KV memory are the same ones."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from engine.build import build_engine
from engine.config import EngineConfig
from engine.parallel import TensorParallel
from tests.benchmarks.allocation import System
from tests.benchmarks.conversation import SMALL_CHAT
from tests.benchmarks.drive import Run, Server

_SCALE = SMALL_CHAT
# Sequences are a sixteenth as long as on a GPU, and so are blocks, within reason for the kernels.
_BLOCK_SIZE = 4
# An A100 has room for 10 to 28 contexts of LLaMA-2-7B, and computes at full rate from some 150
# sequences on. Two cores do so from about 15 on; in proportion they would get 1 to 3 contexts.
_NUM_CONTEXTS = 4
_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 4
"""SmolLM2-135M in float32: layers, keys and values, heads, their width."""
_WARM_UP = (60, 30)


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that come at a share of the most that a system can serve."""

    name: str
    of: System
    share: float
    num_requests: int


LATENCY_LOADS = (
    Load("low load", System.CONTIGUOUS, share=0.1, num_requests=15),
    Load("high load", System.CONTIGUOUS, share=0.8, num_requests=150),
    Load("overload", System.PAGED, share=0.8, num_requests=200),
)


class Bench:
    """One engine, and a server of each system that is used in turn."""

    def __init__(self, model: Path) -> None:
        config = EngineConfig(
            model_path=model,
            model_name="smollm2",
            device="cpu",
            dtype="float32",
            block_size=_BLOCK_SIZE,
            kv_cache_bytes=_NUM_CONTEXTS * _SCALE.context * _BYTES_PER_TOKEN,
            max_model_len=_SCALE.context,
            enable_prefix_caching=False,
        )
        built = build_engine(config, TensorParallel.single())
        assert built.report.memory.num_cache_tokens == _NUM_CONTEXTS * _SCALE.context
        self._conversations = _SCALE.conversations()
        self.servers = {
            system: Server(
                system,
                config,
                built.core._executor,
                context=_SCALE.context,
                vocab_size=built.report.model.vocab_size,
            )
            for system in System
        }
        # Afterwards each knows how long steps take and how long answers get.
        num_requests, concurrency = _WARM_UP
        for server in self.servers.values():
            server.run_closed(self._conversations[-num_requests:], concurrency)

    @property
    def mean_output_tokens(self) -> float:
        """Of the sample."""
        return statistics.mean(each.output_tokens for each in self._conversations)

    def run_closed(self, concurrency: int, server: Server) -> Run:
        """Keep `concurrency` requests in flight, for more rounds where there are few."""
        num_requests = max(12, min(2 * concurrency, concurrency + 50))
        return server.run_closed(self._conversations[:num_requests], concurrency)

    def run_open(self, rate: float, num_requests: int, server: Server) -> Run:
        """Send requests at `rate` a second."""
        return server.run_open(self._conversations[:num_requests], rate)
