"""What the engine core asks of whatever runs the model."""

from typing import Protocol

from engine.batch import Batch, SampledToken


class Executor(Protocol):
    """Runs batches on one tensor-parallel group. Called from the step thread alone."""

    @property
    def num_blocks(self) -> int:
        """KV blocks the group holds."""

    @property
    def num_host_blocks(self) -> int:
        """Blocks of its host tier; 0: it has none."""

    def execute(self, batch: Batch) -> list[SampledToken | None]:
        """Compute the batch; one entry per sequence, None where no token was needed."""

    def shutdown(self) -> None:
        """Release the group; ranks other than this one leave their loops."""
