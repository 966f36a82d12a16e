"""What the engine core asks of whatever runs the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.batch import Batch, SampledToken


class Submission(Protocol):
    """A batch on its way."""

    @property
    def can_be_followed(self) -> bool:
        """Whether the next batch may be submitted before `tokens` is called."""

    def tokens(self) -> Sequence[SampledToken | None]:
        """Wait; one entry per sequence, None where no token was needed."""


@dataclass(frozen=True, slots=True)
class Computed:
    """The submission of an executor that computes at once."""

    sampled: Sequence[SampledToken | None]
    can_be_followed: bool = False

    def tokens(self) -> Sequence[SampledToken | None]:
        """Return what is there."""
        return self.sampled


class Executor(Protocol):
    """Runs batches on one tensor-parallel group. Called from the step thread alone."""

    @property
    def num_blocks(self) -> int:
        """KV blocks the group holds."""

    @property
    def num_host_blocks(self) -> int:
        """Blocks of its host tier; 0: it has none."""

    def submit(self, batch: Batch) -> Submission:
        """Begin to compute the batch. Batches are computed in order."""

    def shutdown(self) -> None:
        """Release the group; ranks other than this one leave their loops."""
