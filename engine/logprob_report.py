"""Log probabilities that clients ask for: of the logits as the model gave them."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from engine.output import TokenLogprob
from engine.request import Request
from kernels.transfer import to_device, to_host


class LogprobReport:
    """The reports of a step's rows, on their way to the host."""

    def __init__(self, logits: Tensor, token_ids: Tensor, requests: Sequence[Request]) -> None:
        """Compute what the rows that want a report need, where the logits are.

        Args:
            logits: [num_rows, vocab_size], any float dtype.
            token_ids: what was chosen, [num_rows] int32 or int64.
            requests: one a row.
        """
        self._wanted = {
            row: request.params.logprobs
            for row, request in enumerate(requests)
            if request.params.logprobs is not None
        }
        self._values: list[Tensor] = []
        if not self._wanted:
            return
        rows = to_device(np.array(list(self._wanted), dtype=np.int64), logits.device)
        logits = (logits if len(rows) == len(logits) else logits[rows]).float()
        shift = logits.logsumexp(1, keepdim=True)
        # Where logits are not finite nothing was chosen, and nothing will be reported.
        chosen = token_ids[rows].long().clamp(min=0)
        own = (logits.gather(1, chosen[:, None]) - shift)[:, 0]
        highest, indices = logits.topk(min(max(self._wanted.values()), logits.shape[1]))
        self._values = [to_host(value) for value in (chosen, own, indices, highest - shift)]

    def read(self) -> dict[int, TokenLogprob]:
        """Return the report of each row whose request asks for one, once they are here."""
        columns = [value.tolist() for value in self._values]
        return {
            row: TokenLogprob(token_id, logprob, _best_first(*top)[:num_wanted])
            for (row, num_wanted), token_id, logprob, *top in zip(
                self._wanted.items(), *columns, strict=True
            )
        }


def _best_first(token_ids: list[int], logprobs: list[float]) -> list[tuple[int, float]]:
    # topk leaves open which of equals comes first.
    pairs = zip(token_ids, logprobs, strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
