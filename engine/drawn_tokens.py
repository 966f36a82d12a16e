"""The tokens that a sampler chose: here already, or on their way from the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.batch import SampledToken
from engine.logprob_report import LogprobReport
from engine.request import Request
from kernels.transfer import to_host


class DrawnTokens(Protocol):
    """One token a row."""

    @property
    def on_device(self) -> Tensor | None:
        """Their ids, [num_rows] int32, for a next step before they are read; None: only here."""

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

    def __init__(
        self, token_ids: Tensor, requests: Sequence[Request], report: LogprobReport | None = None
    ) -> None:
        """Begin to copy.

        Args:
            token_ids: [num_rows] int32; -1 where the logits are not finite.
            requests: one a row.
            report: what they ask for beside.
        """
        self.on_device = token_ids
        self._requests = requests
        self._report = report
        self._host = to_host(token_ids)
        self._copied = torch.cuda.Event() if token_ids.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def tokens(self) -> list[SampledToken]:
        """Wait for them, even where there are none: then the step has run."""
        if self._copied is not None:
            self._copied.synchronize()
        token_ids = self._host.tolist()
        pairs = zip(self._requests, token_ids, strict=True)
        failed = [request.request_id for request, token_id in pairs if token_id < 0]
        if failed:
            names = ", ".join(failed)
            raise RuntimeError(f"the model gave logits that are not finite for {names}")
        reports = {} if self._report is None else self._report.read()
        return [SampledToken(token_id, reports.get(i)) for i, token_id in enumerate(token_ids)]
