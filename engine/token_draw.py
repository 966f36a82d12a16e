"""Draws one token for each of fixed rows: temperature, min-p, top-k, top-p, then one number.

What a draw does, by which it may be reproduced elsewhere:

1. A token weighs exp((logit - highest logit) / temperature) in float32; temperatures below 1e-6
   count as 1e-6. Tokens rank by weight, of equal ones the lower id first.
2. min-p keeps the tokens that weigh at least `min_p` (the highest weighs 1). top-k keeps the first
   k of them by rank. top-p keeps, of those, the shortest run by rank that holds at least `top_p` of
   their weight. At least one token is kept.
3. The kept tokens lie side by side in the order of their ids, each as wide as it weighs; the one
   drawn is where `number * total width` falls. A border belongs to the token that begins there, so
   a token of weight 0 is never drawn.

So a row depends on its own logits, params and number, not on the rows beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.random import UniformNumbers
from engine.request import Request

MIN_TEMPERATURE = 1e-6
# Reductions over a vocabulary run in two levels, over segments and then inside one: on CPU that is
# 3 times as fast for argmax, 10 times for a cumulative sum. Sums are in float64: a draw must not
# hang on how many candidates the rows beside it call for.
SEGMENT = 128
# Most distributions have their top-p tokens among so many; those that do not are sorted whole.
_MIN_CANDIDATES = 64
_MAX_CANDIDATES = 1024
# Bounds the memory that sorting takes.
_MAX_SORTED_ROWS = 16


@dataclass(frozen=True, slots=True)
class _Filter:
    """top-k and top-p of rows."""

    top_k: Tensor
    """[num_rows, 1] int64; the size of the vocabulary where it is off."""
    top_p: Tensor
    """[num_rows, 1] float64; 1 where it is off."""

    def take(self, rows: Tensor) -> "_Filter":
        return _Filter(self.top_k[rows], self.top_p[rows])


class TokenDraw:
    """Draws for fixed rows, one request a row, none of them greedy."""

    def __init__(self, requests: Sequence[Request], vocab_size: int, device: torch.device) -> None:
        self._requests = list(requests)
        self._device = device
        self._numbers = UniformNumbers(
            [request.seed for request in requests], [request.choice_index for request in requests]
        )
        params = [request.params for request in requests]
        temperatures = [max(p.temperature, MIN_TEMPERATURE) for p in params]
        self._temperature = torch.tensor(temperatures, device=device)[:, None]
        min_p = torch.tensor([p.min_p for p in params], device=device)[:, None]
        self._min_p = min_p if any(p.min_p > 0 for p in params) else None
        top_k = [min(p.top_k, vocab_size) if p.top_k > 0 else vocab_size for p in params]
        self._filter = _Filter(
            torch.tensor(top_k, device=device)[:, None],
            torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device)[:, None],
        )
        is_filtered = [k < vocab_size or p.top_p < 1 for k, p in zip(top_k, params, strict=True)]
        self._filtered = _rows_where(is_filtered, device)
        self._open = _rows_where([not filtered for filtered in is_filtered], device)
        # One more than top-k shows whether its last token ties with one left out.
        wanted = max((k + 1 for k in top_k if k < vocab_size), default=0)
        self._num_candidates = min(max(wanted, _MIN_CANDIDATES), _MAX_CANDIDATES)

    def draw(self, logits: Tensor, highest: Tensor) -> Tensor:
        """Draw the next token of every row.

        Args:
            logits: [num_rows, vocab_size] float32; overwritten.
            highest: largest logit of each row, finite, [num_rows] float32.

        Returns token ids, [num_rows] int64.
        """
        weights = logits.sub_(highest[:, None]).div_(self._temperature).exp_()
        if self._min_p is not None:
            weights.masked_fill_(weights < self._min_p, 0)
        positions = [request.num_output_tokens for request in self._requests]
        numbers = torch.from_numpy(self._numbers.at(positions)).to(self._device)
        if self._filtered is None:
            return pick(weights, numbers)
        if self._open is None:
            return _pick_filtered(weights, self._filter, numbers, self._num_candidates)
        token_ids = torch.empty(len(weights), dtype=torch.int64, device=self._device)
        token_ids[self._open] = pick(weights[self._open], numbers[self._open])
        token_ids[self._filtered] = _pick_filtered(
            weights[self._filtered],
            self._filter.take(self._filtered),
            numbers[self._filtered],
            self._num_candidates,
        )
        return token_ids


def split_segments(values: Tensor, padding: float) -> Tensor:
    """Cut rows into segments: [num_rows, n] to [num_rows, num_segments, SEGMENT]."""
    excess = values.shape[1] % SEGMENT
    if excess:
        values = torch.nn.functional.pad(values, (0, SEGMENT - excess), value=padding)
    return values.view(len(values), -1, SEGMENT)


def pick(weights: Tensor, numbers: Tensor) -> Tensor:
    """Find the column of each row where its number falls (step 3 of the module).

    Args:
        weights: [num_rows, n] float32, at least one above 0 in each row.
        numbers: [num_rows] float64 in [0, 1).

    Returns columns, [num_rows] int64.
    """
    segments = split_segments(weights, 0.0)
    ends = segments.sum(2, dtype=torch.float64).cumsum(1)
    target = numbers[:, None] * ends[:, -1:]
    segment = (ends <= target).sum(1, keepdim=True)
    start = torch.where(segment > 0, ends.gather(1, (segment - 1).clamp(min=0)), 0.0)
    rows = torch.arange(len(weights), device=weights.device)
    inner_ends = segments[rows, segment[:, 0]].double().cumsum(1)
    column = (inner_ends <= target - start).sum(1)
    # The two levels round differently: never run past the last token that has weight.
    last = (inner_ends < inner_ends[:, -1:]).sum(1)
    return segment[:, 0] * SEGMENT + torch.minimum(column, last)


def _pick_filtered(
    weights: Tensor, limits: _Filter, numbers: Tensor, num_candidates: int
) -> Tensor:
    """Pick from the tokens that top-k and top-p keep; arguments as for `pick`."""
    vocab_size = weights.shape[1]
    num_candidates = min(num_candidates, vocab_size)
    largest, token_ids = weights.topk(num_candidates)
    everything = weights.sum(1, keepdim=True, dtype=torch.float64)
    num_kept = _count_kept(largest, limits, everything)
    token_ids, order = token_ids.sort(1)
    kept = _keep(largest.gather(1, order), largest, num_kept)
    picked = token_ids.gather(1, pick(kept, numbers)[:, None])[:, 0]

    # Sure of a row: a token that weighs less than the lightest kept, or nothing, is a candidate.
    smallest = largest[:, -1:]
    is_whole = (limits.top_k <= num_candidates) | (limits.top_k == vocab_size)
    is_sure = is_whole & ((smallest < largest.gather(1, num_kept - 1)) | (smallest == 0))
    unsure = (~is_sure[:, 0]).nonzero()[:, 0]
    for start in range(0, len(unsure), _MAX_SORTED_ROWS):
        rows = unsure[start : start + _MAX_SORTED_ROWS]
        picked[rows] = _pick_sorted(weights[rows], limits.take(rows), numbers[rows])
    return picked


def _pick_sorted(weights: Tensor, limits: _Filter, numbers: Tensor) -> Tensor:
    """Do what `_pick_filtered` does, with all tokens as candidates."""
    if weights.device.type == "cpu":
        # 20 times faster than torch.sort, which cannot leave the indices out.
        largest = torch.from_numpy(np.sort(weights.numpy(), axis=1)).flip(1)
    else:
        largest = weights.sort(1, descending=True).values
    everything = largest.sum(1, keepdim=True, dtype=torch.float64)
    num_kept = _count_kept(largest, limits, everything)
    return pick(_keep(weights, largest, num_kept), numbers)


def _count_kept(largest: Tensor, limits: _Filter, everything: Tensor) -> Tensor:
    """Count the tokens kept, at least 1; all candidates where those are too few.

    Args:
        largest: the first candidates of each row by rank, [num_rows, num_candidates] float32.
        limits: what to keep.
        everything: weight of the whole row, [num_rows, 1] float64.

    Returns [num_rows, 1] int64.
    """
    num_candidates = largest.shape[1]
    in_top_k = torch.arange(num_candidates, device=largest.device) < limits.top_k
    masses = (largest * in_top_k).double()
    ends = masses.cumsum(1)
    total = torch.where(limits.top_k <= num_candidates, ends[:, -1:], everything)
    in_top_p = ends - masses < limits.top_p * total
    return (in_top_k & in_top_p).sum(1, keepdim=True).clamp(min=1)


def _keep(by_id: Tensor, largest: Tensor, num_kept: Tensor) -> Tensor:
    """Set to 0 what is not among the first `num_kept` by rank.

    Args:
        by_id: weights in the order of token ids, [num_rows, n].
        largest: the same weights, heaviest first.
        num_kept: [num_rows, 1].
    """
    lightest = largest.gather(1, num_kept - 1)
    # Of those as light as the lightest only the first ids are kept.
    num_ties_kept = num_kept - (largest > lightest).sum(1, keepdim=True)
    is_tie = by_id == lightest
    is_kept = (by_id > lightest) | (is_tie & (is_tie.cumsum(1) <= num_ties_kept))
    return by_id * is_kept


def _rows_where(flags: Sequence[bool], device: torch.device) -> Tensor | None:
    rows = [row for row, flag in enumerate(flags) if flag]
    return torch.tensor(rows, device=device) if rows else None
