"""The tokens that a sampler chose: here already, or on their way from the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.batch import SampledToken
from engine.logprob_report import report_logprobs
from engine.request import Request


class DrawnTokens(Protocol):
    """One token a row."""

    @property
    def on_device(self) -> Tensor | None:
        """Their ids, [num_rows] int32, if the next step can do with them; None: read them first."""

    def tokens(self) -> Sequence[SampledToken]:
        """Wait for them. Raises RuntimeError when logits were not finite."""


@dataclass(frozen=True, slots=True)
class KnownTokens:
    """Tokens that are here."""

    sampled: Sequence[SampledToken]
    on_device: Tensor | None = None

    def tokens(self) -> Sequence[SampledToken]:
        """Return them."""
        return self.sampled


class ComingTokens:
    """Tokens that are being copied to the host."""

    def __init__(self, logits: Tensor, token_ids: Tensor, requests: Sequence[Request]) -> None:
        """Begin to copy.

        Args:
            logits: [num_rows, vocab_size], for the reports that requests ask for.
            token_ids: [num_rows] int32; -1 where the logits are not finite.
            requests: one a row.
        """
        self.on_device = token_ids if all(map(_is_plain, requests)) else None
        self._logits = logits
        self._token_ids = token_ids
        self._requests = requests
        is_cuda = token_ids.device.type == "cuda"
        self._host = torch.empty(len(token_ids), dtype=torch.int32, pin_memory=is_cuda)
        self._host.copy_(token_ids, non_blocking=True)
        self._copied = torch.cuda.Event() if is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def tokens(self) -> list[SampledToken]:
        """Wait for them."""
        if self._copied is not None:
            self._copied.synchronize()
        token_ids = self._host.tolist()
        pairs = zip(self._requests, token_ids, strict=True)
        failed = [request.request_id for request, token_id in pairs if token_id < 0]
        if failed:
            names = ", ".join(failed)
            raise RuntimeError(f"the model gave logits that are not finite for {names}")
        reports = report_logprobs(self._logits, self._token_ids, self._requests)
        return [SampledToken(token_id, reports.get(i)) for i, token_id in enumerate(token_ids)]


def _is_plain(request: Request) -> bool:
    """Whether its next token can be drawn before this one is known, and none needs a report."""
    params = request.params
    is_short = request.num_output_tokens < params.min_tokens
    return params.logprobs is None and not (params.logit_bias or params.has_penalties or is_short)
