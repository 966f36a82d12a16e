"""Turns the logits of a step into its tokens.

Order: logit bias, minimum length, penalties (engine/logits_processors.py); then the highest logit,
the lowest token id among equals, for rows that are greedy, and a draw (engine/token_draw.py) for
the others. Log probabilities are those of the model: of the logits as they came in.
"""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.batch import SampledToken
from engine.drawn_tokens import KnownTokens
from engine.logits_processors import LogitsProcessor, build_processors
from engine.logprob_report import LogprobReport
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.token_draw import TokenDraw, split_segments


class Sampler:
    """Samples for one model. What it prepares for a set of rows is kept while the set stays."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows: _Rows | None = None
        self._scratch: Tensor | None = None

    def draw(self, logits: Tensor | None, requests: list[Request]) -> KnownTokens:
        """Do what `sample` does, for `model_executor.BatchSampler`."""
        return KnownTokens([] if logits is None else self.sample(logits, requests))

    def sample(self, logits: Tensor, requests: list[Request]) -> list[SampledToken]:
        """Choose the next token of every request.

        Args:
            logits: [num_rows, vocab_size], any float dtype; left as they are.
            requests: one a row.
        """
        if not requests:
            return []
        rows = self._prepare_rows(requests, logits.device)
        changed = logits
        if rows.changes_logits:
            changed = self._copy(logits)
            for processor in rows.processors:
                processor.apply(changed)
        highest, token_ids = find_highest(changed)
        self._check_finite(highest, requests)
        if rows.draw is not None:
            if rows.drawn is None:
                token_ids = rows.draw.draw(changed, highest)
            else:
                token_ids[rows.drawn] = rows.draw.draw(changed[rows.drawn], highest[rows.drawn])
        tokens = token_ids.tolist()
        if not rows.wants_logprobs:
            return [SampledToken(token_id) for token_id in tokens]
        reports = LogprobReport(logits, token_ids, requests).read()
        return [SampledToken(token_id, reports.get(row)) for row, token_id in enumerate(tokens)]

    def _prepare_rows(self, requests: list[Request], device: torch.device) -> "_Rows":
        rows = self._rows
        if rows is None or not rows.are(requests):
            before = rows.processors if rows is not None else ()
            rows = _Rows(requests, self._vocab_size, device, before)
            self._rows = rows
        return rows

    def _copy(self, logits: Tensor) -> Tensor:
        # Memory that is mapped anew each step costs more than the arithmetic on it.
        scratch = self._scratch
        if scratch is None or len(scratch) < len(logits):
            scratch = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
            self._scratch = scratch
        return scratch[: len(logits)].copy_(logits)

    def _check_finite(self, highest: Tensor, requests: Sequence[Request]) -> None:
        is_finite = highest.isfinite()
        if bool(is_finite.all()):
            return
        names = [requests[row].request_id for row in (~is_finite).nonzero()[:, 0].tolist()]
        raise RuntimeError(f"the model gave logits that are not finite for {', '.join(names)}")


class _Rows:
    """What can be prepared for rows as long as they stay the same."""

    def __init__(
        self,
        requests: list[Request],
        vocab_size: int,
        device: torch.device,
        before: Sequence[LogitsProcessor],
    ) -> None:
        self._requests = list(requests)
        self.processors = build_processors(requests, vocab_size, device, before)
        drawn = [row for row, request in enumerate(requests) if not _is_greedy(request.params)]
        self.draw = (
            TokenDraw([requests[row] for row in drawn], vocab_size, device) if drawn else None
        )
        # None also when all are drawn, which saves a copy of the logits.
        self.drawn = torch.tensor(drawn, device=device) if 0 < len(drawn) < len(requests) else None
        self.changes_logits = bool(self.processors or drawn)
        self.wants_logprobs = any(request.params.logprobs is not None for request in requests)

    def are(self, requests: list[Request]) -> bool:
        """Whether these are the same requests, in the same order."""
        mine = self._requests
        return len(mine) == len(requests) and all(map(operator.is_, mine, requests))


def find_highest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Find the highest logit of each row and the lowest token id that has it.

    Args:
        logits: [num_rows, vocab_size], any float dtype.

    Returns [num_rows] float32, NaN if the row has one, and [num_rows] int64.
    """
    segments = split_segments(logits, float("-inf"))
    # Not argmax over the whole row: on CPU this is 3 times as fast in float32, 6 in bfloat16.
    highest, segment = segments.amax(2).float().max(1)
    rows = torch.arange(len(logits), device=logits.device)
    column = segments[rows, segment].float().argmax(1)
    return highest, segment * segments.shape[2] + column


def _is_greedy(params: SamplingParams) -> bool:
    # The first by rank is what top-k keeps; exp could make others as heavy as it is.
    return params.is_greedy or params.top_k == 1
