"""Rank 0's side of a step on a GPU: what `ModelExecutor` does, with the next step under way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.batch import Batch, SampledToken
from engine.gpu_sampler import GpuSampler, is_plain
from engine.input_batch import InputBatch
from engine.logprob_report import report_logprobs
from engine.model_runner import ModelRunner
from engine.parallel import TensorParallel
from engine.request import Request
from engine.step_channel import StepChannel
from engine.step_input import StepInput


class GpuExecutor:
    """Runs batches on a tensor-parallel group. See engine/executor.py."""

    def __init__(
        self,
        runner: ModelRunner,
        input_batch: InputBatch,
        sampler: GpuSampler,
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

    def submit(self, batch: Batch) -> "DrawnBatch":
        """Launch the batch and what draws its tokens."""
        step, wanting = self._input_batch.step_input(batch)
        self._channel.send(step)
        logits = self._runner.forward(step)
        requests = [batch.requests[i].request for i in wanting]
        drawn = None
        can_be_followed = False
        if logits is not None:
            drawn = self._sampler.draw(logits, requests, num_ahead=int(batch.is_ahead))
            can_be_followed = self._can_follow(step, requests)
            if can_be_followed:
                self._runner.keep_tokens(drawn)
        return DrawnBatch(len(batch.requests), wanting, requests, logits, drawn, can_be_followed)

    def shutdown(self) -> None:
        """Send the other ranks home and leave the group."""
        self._channel.send_stop()
        self._runner.drop_graphs()
        self._group.close()

    def _can_follow(self, step: StepInput, requests: list[Request]) -> bool:
        # Other ranks would have to be sent the tokens: only rank 0 draws.
        return (
            self._group.size == 1
            and self._runner.keeps_tokens(step)
            and all(map(is_plain, requests))
        )


class DrawnBatch:
    """A batch whose tokens are on their way to the host."""

    def __init__(
        self,
        num_seqs: int,
        wanting: list[int],
        requests: list[Request],
        logits: Tensor | None,
        drawn: Tensor | None,
        can_be_followed: bool,
    ) -> None:
        self.can_be_followed = can_be_followed
        self._num_seqs = num_seqs
        self._wanting = wanting
        self._requests = requests
        self._logits = logits
        self._drawn = drawn
        self._host = torch.empty(0, dtype=torch.int32)
        self._copied: torch.cuda.Event | None = None
        if drawn is not None:
            is_cuda = drawn.device.type == "cuda"
            self._host = torch.empty(len(drawn), dtype=torch.int32, pin_memory=is_cuda)
            self._host.copy_(drawn, non_blocking=True)
            if is_cuda:
                self._copied = torch.cuda.Event()
                self._copied.record()

    def tokens(self) -> Sequence[SampledToken | None]:
        """Wait; one entry per sequence, None where no token was needed."""
        if self._copied is not None:
            self._copied.synchronize()
        tokens: list[SampledToken | None] = [None] * self._num_seqs
        if self._logits is None or self._drawn is None:
            return tokens
        token_ids = self._host.tolist()
        self._check_drawn(token_ids)
        reports = report_logprobs(self._logits, self._drawn, self._requests)
        for row, (i, token_id) in enumerate(zip(self._wanting, token_ids, strict=True)):
            tokens[i] = SampledToken(token_id, reports.get(row))
        return tokens

    def _check_drawn(self, token_ids: list[int]) -> None:
        if min(token_ids) >= 0:
            return
        pairs = zip(self._requests, token_ids, strict=True)
        names = [request.request_id for request, token_id in pairs if token_id < 0]
        raise RuntimeError(f"the model gave logits that are not finite for {', '.join(names)}")
