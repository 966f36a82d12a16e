"""An engine whose every step takes 30 ms and no CPU: what is left is what the rest costs."""

import time
from pathlib import Path

from engine.batch import Batch, SampledToken
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.executor import Computed

STEP_S = 0.030
MAX_MODEL_LEN = 4096
NUM_BLOCKS = 20_000
VOCAB_SIZE = 49_152
TOKEN_ID = 1000
"""A word of SmolLM2's."""


class PacedExecutor:
    """Sleeps."""

    num_blocks = NUM_BLOCKS
    num_host_blocks = 0

    def submit(self, batch: Batch) -> Computed:
        """Return a token for each sequence that wants one, when the time has passed."""
        time.sleep(STEP_S)
        tokens: list[SampledToken | None] = [None] * len(batch.requests)
        for i in batch.wanting:
            tokens[i] = SampledToken(TOKEN_ID)
        return Computed(tokens)

    def shutdown(self) -> None:
        """Nothing to release."""


def paced_core() -> EngineCore:
    """An engine of the usual kind on it."""
    config = EngineConfig(model_path=Path("paced"), model_name="smollm2")
    return EngineCore(
        config,
        PacedExecutor(),
        max_model_len=MAX_MODEL_LEN,
        eos_token_ids=frozenset(),
        vocab_size=VOCAB_SIZE,
    )
