"""An engine whose steps take time and no CPU: what is left is what the rest costs."""

import time
from pathlib import Path

from cluster.simulation.replica import ReplicaModel
from engine.batch import Batch, SampledToken
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.executor import Computed

VOCAB_SIZE = 49_152
TOKEN_ID = 1000
"""A word of SmolLM2's."""

STEADY = ReplicaModel(
    num_blocks=20_000, constant_s=0.030, seq_s=0.0, kv_token_s=0.0, prefill_token_s=0.0
)
"""Every step takes 30 ms."""
SHRINK = 16
SHRUNK = ReplicaModel(
    num_blocks=28_800 // SHRINK,
    max_num_batched_tokens=2048 // SHRINK,
    prefill_token_s=SHRINK * 0.16e-3,
    kv_token_s=SHRINK * 40e-9,
)
"""An 8B model on a large GPU, for requests that are 16 times as short."""
MODELS = {"steady": STEADY, "shrunk": SHRUNK}


class PacedExecutor:
    """Sleeps for as long as the model of a replica says."""

    num_host_blocks = 0

    def __init__(self, model: ReplicaModel) -> None:
        self.num_blocks = model.num_blocks
        self._model = model

    def submit(self, batch: Batch) -> Computed:
        """Return a token for each sequence that wants one, when the time has passed."""
        time.sleep(self._model.step_s(batch))
        tokens: list[SampledToken | None] = [None] * len(batch.requests)
        for i in batch.wanting:
            tokens[i] = SampledToken(TOKEN_ID)
        return Computed(tokens)

    def shutdown(self) -> None:
        """Nothing to release."""


def max_model_len(model: ReplicaModel) -> int:
    """Longest prompt plus output."""
    return model.num_blocks * model.block_size


def paced_core(model: ReplicaModel) -> EngineCore:
    """An engine of the usual kind on it."""
    config = EngineConfig(
        model_path=Path("paced"),
        model_name="smollm2",
        block_size=model.block_size,
        max_num_seqs=model.max_num_seqs,
        max_num_batched_tokens=model.max_num_batched_tokens,
        preset=model.preset,
    )
    return EngineCore(
        config,
        PacedExecutor(model),
        max_model_len=max_model_len(model),
        eos_token_ids=frozenset(),
        vocab_size=VOCAB_SIZE,
    )
