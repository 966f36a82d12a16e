"""Log probabilities that clients ask for: of the logits as the model gave them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.output import TokenLogprob
from engine.request import Request


def report_logprobs(
    logits: Tensor, token_ids: Tensor, requests: Sequence[Request]
) -> dict[int, TokenLogprob]:
    """Return the report of each row whose request asks for one.

    Args:
        logits: [num_rows, vocab_size], any float dtype.
        token_ids: what was chosen, [num_rows] int32 or int64.
        requests: one a row.
    """
    wanted = {
        row: request.params.logprobs
        for row, request in enumerate(requests)
        if request.params.logprobs is not None
    }
    if not wanted:
        return {}
    rows = torch.tensor(list(wanted), device=logits.device)
    logits = (logits if len(wanted) == len(logits) else logits[rows]).float()
    shift = logits.logsumexp(1, keepdim=True)
    chosen = token_ids[rows].long()
    own = (logits.gather(1, chosen[:, None]) - shift)[:, 0].tolist()
    highest, indices = logits.topk(min(max(wanted.values()), logits.shape[1]))
    tops = zip(wanted.values(), indices.tolist(), (highest - shift).tolist(), strict=True)
    return {
        row: TokenLogprob(token_id, logprob, _best_first(*top)[:num_wanted])
        for row, token_id, logprob, (num_wanted, *top) in zip(
            wanted, chosen.tolist(), own, tops, strict=True
        )
    }


def _best_first(token_ids: list[int], logprobs: list[float]) -> list[tuple[int, float]]:
    # topk leaves open which of equals comes first.
    pairs = zip(token_ids, logprobs, strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
