"""Rank 0's side of a step: batch -> arrays -> every rank's forward -> logits -> tokens."""

from engine.batch import Batch, SampledToken
from engine.executor import Computed
from engine.input_batch import InputBatch
from engine.model_runner import ModelRunner
from engine.parallel import TensorParallel
from engine.sampler import Sampler
from engine.step_channel import StepChannel


class ModelExecutor:
    """Runs batches on a tensor-parallel group. See engine/executor.py."""

    def __init__(
        self,
        runner: ModelRunner,
        input_batch: InputBatch,
        sampler: Sampler,
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

    def submit(self, batch: Batch) -> Computed:
        """Compute the batch."""
        step, wanting = self._input_batch.step_input(batch)
        self._channel.send(step)
        logits = self._runner.forward(step)
        tokens: list[SampledToken | None] = [None] * len(batch.requests)
        if logits is None:
            return Computed(tokens)
        requests = [batch.requests[i].request for i in wanting]
        for i, token in zip(wanting, self._sampler.sample(logits, requests), strict=True):
            tokens[i] = token
        return Computed(tokens)

    def shutdown(self) -> None:
        """Send the other ranks home and leave the group."""
        self._channel.send_stop()
        self._group.close()
