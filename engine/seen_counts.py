"""What the requests of a batch have seen, counted where tokens are drawn.

So that penalties follow from tokens that the host has not read yet.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.request import Request
from kernels.sampling_rows import SeenTokens
from kernels.transfer import to_device

_BITS = 32


class SeenCounts:
    """The counts of fixed rows, one request a row, with and without penalties."""

    def __init__(
        self,
        requests: Sequence[Request],
        vocab_size: int,
        device: torch.device,
        before: "SeenCounts | None" = None,
    ) -> None:
        """Count for new rows, and take over what is counted.

        Args:
            requests: one a row.
            vocab_size: columns of the logits.
            device: where tokens are drawn.
            before: of other rows; those of requests that stay are copied from it.
        """
        self._penalised = {
            request: row for row, request in enumerate(requests) if request.params.has_penalties
        }
        params = [request.params for request in requests]
        penalties = np.array(
            [[getattr(p, f"{kind}_penalty") for p in params] for kind in _KINDS], dtype=np.float32
        )
        repetition, presence, frequency = to_device(penalties, device)
        num_words = -(-vocab_size // _BITS)
        shape = len(requests), num_words
        in_prompt = torch.zeros(shape, dtype=torch.int32, device=device)
        counts = torch.zeros((len(requests), vocab_size), dtype=torch.int32, device=device)
        self.rows = SeenTokens(repetition, presence, frequency, in_prompt, counts)
        known = before._penalised if before is not None else {}
        self._take_over(before, [r for r in self._penalised if r in known])
        self._count([r for r in self._penalised if r not in known])

    def add(self, token_ids: Tensor) -> None:
        """Count the tokens that were drawn, [num_rows] int32."""
        column = token_ids.long().clamp(min=0)[:, None]
        ones = torch.ones_like(column, dtype=torch.int32)
        self.rows.output_counts.scatter_add_(1, column, ones)

    def _take_over(self, before: "SeenCounts | None", requests: list[Request]) -> None:
        if before is None or not requests:
            return
        places = [[before._penalised[r] for r in requests], [self._penalised[r] for r in requests]]
        device = self.rows.in_prompt.device
        old, new = to_device(np.array(places, dtype=np.int64), device)
        self.rows.in_prompt.index_copy_(0, new, before.rows.in_prompt[old])
        self.rows.output_counts.index_copy_(0, new, before.rows.output_counts[old])

    def _count(self, requests: list[Request]) -> None:
        """Count what the host knows of requests, which is all that they have."""
        for request in requests:
            assert not request.num_unknown_tokens, "it was here when the token was drawn"
            row = self._penalised[request]
            bits = np.zeros(self.rows.in_prompt.shape[1], dtype=np.uint32)
            prompt = np.unique(np.array(request.prompt_token_ids, dtype=np.uint32))
            np.bitwise_or.at(bits, prompt // _BITS, np.uint32(1) << prompt % _BITS)
            device = self.rows.in_prompt.device
            self.rows.in_prompt[row] = to_device(bits.view(np.int32), device)
            output = request.token_ids[request.num_prompt_tokens :]
            if output:
                token_ids, times = np.unique(np.array(output, dtype=np.int64), return_counts=True)
                columns = to_device(token_ids, device)
                self.rows.output_counts[row, columns] = to_device(times.astype(np.int32), device)


_KINDS = ("repetition", "presence", "frequency")
