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

    rows: SeenTokens

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
        known = before._penalised if before is not None else {}
        places = [known.get(r, -1) if r.params.has_penalties else -1 for r in requests]
        shapes = (len(requests), -(-vocab_size // _BITS)), (len(requests), vocab_size)
        if before is None or max(places) < 0:
            in_prompt, counts = (
                torch.zeros(shape, dtype=torch.int32, device=device) for shape in shapes
            )
        else:
            old = to_device(np.array(places, dtype=np.int64), device)
            is_new = (old < 0)[:, None]
            in_prompt, counts = (
                # One copy and no more: the counts may be the largest thing beside the weights.
                table.index_select(0, old.clamp(min=0)).masked_fill_(is_new, 0)
                for table in (before.rows.in_prompt, before.rows.output_counts)
            )
        repetition, presence, frequency = _penalties(requests, device)
        self.rows = SeenTokens(repetition, presence, frequency, in_prompt, counts)
        self._count([r for r in self._penalised if r not in known])

    def add(self, token_ids: Tensor) -> None:
        """Count the tokens that were drawn, [num_rows] int32."""
        column = token_ids.long().clamp(min=0)[:, None]
        ones = torch.ones_like(column, dtype=torch.int32)
        self.rows.output_counts.scatter_add_(1, column, ones)

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


def _penalties(requests: Sequence[Request], device: torch.device) -> list[Tensor]:
    """Return the repetition, presence and frequency penalty of each row, [num_rows] float32."""
    params = [request.params for request in requests]
    # Rows that begin at 16 bytes: of others the kernel would be compiled anew, while they wait.
    penalties = np.zeros((3, -(-len(params) // 4) * 4), dtype=np.float32)
    penalties[0, : len(params)] = [p.repetition_penalty for p in params]
    penalties[1, : len(params)] = [p.presence_penalty for p in params]
    penalties[2, : len(params)] = [p.frequency_penalty for p in params]
    return [row[: len(params)] for row in to_device(penalties, device)]
