"""Rank 0's side of a step: batch -> arrays -> every rank's forward -> logits -> tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from engine.batch import Batch, SampledToken
from engine.drawn_tokens import DrawnTokens
from engine.executor import Submission
from engine.input_batch import InputBatch
from engine.model_runner import ModelRunner
from engine.parallel import TensorParallel
from engine.request import Request
from engine.step_channel import StepChannel


class BatchSampler(Protocol):
    """Chooses tokens where the logits are: engine/sampler.py, engine/gpu_sampler.py."""

    def draw(self, logits: Tensor | None, requests: list[Request]) -> DrawnTokens:
        """Choose the next token of every request.

        Args:
            logits: [num_rows, vocab_size], any float dtype; left as they are. None: no row.
            requests: one a row.
        """


class ModelExecutor:
    """Runs batches on a tensor-parallel group. See engine/executor.py."""

    def __init__(
        self,
        runner: ModelRunner,
        input_batch: InputBatch,
        sampler: BatchSampler,
        group: TensorParallel,
    ) -> None:
        self._runner = runner
        self._input_batch = input_batch
        self._sampler = sampler
        self._group = group
        self._channel = StepChannel(group)

    @property
    def num_blocks(self) -> int:
        """KV blocks the group holds."""
        return self._runner.num_blocks

    @property
    def num_host_blocks(self) -> int:
        """Blocks of the group's host tier; 0: it has none."""
        return self._runner.num_host_blocks

    def submit(self, batch: Batch) -> Submission:
        """Compute the batch; on a GPU, launch it and what draws its tokens."""
        step = self._input_batch.step_input(batch)
        self._channel.send(step)
        logits = self._runner.forward(step)
        drawn = self._sampler.draw(logits, [batch.requests[i].request for i in batch.wanting])
        can_be_followed = drawn.on_device is not None and self._runner.leaves_tokens
        if can_be_followed:
            self._runner.keep_tokens(drawn.on_device)
        return _Submitted(len(batch.requests), batch.wanting, drawn, can_be_followed)

    def shutdown(self) -> None:
        """Send the other ranks home and leave the group."""
        self._channel.send_stop()
        self._runner.drop_graphs()
        self._group.close()


@dataclass(frozen=True, slots=True)
class _Submitted:
    num_seqs: int
    wanting: list[int]
    """The sequence of each row that was drawn for"""
    drawn: DrawnTokens
    can_be_followed: bool

    def tokens(self) -> Sequence[SampledToken | None]:
        tokens: list[SampledToken | None] = [None] * self.num_seqs
        for i, token in zip(self.wanting, self.drawn.tokens(), strict=True):
            tokens[i] = token
        return tokens
