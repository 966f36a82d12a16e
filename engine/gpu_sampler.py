"""Chooses tokens on a GPU without a word to the host: what is drawn stays there until it is read.

Order and meaning are those of engine/sampler.py. The draw itself is that of `kernels.sampling`: its
numbers come from the same (seed, choice index, position) and are used otherwise, so a seed gives
other tokens than on CPU.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.drawn_tokens import ComingTokens
from engine.logits_processors import LogitsProcessor, build_fixed_processors
from engine.logprob_report import LogprobReport
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.seen_counts import SeenCounts
from kernels.gpu.staging import StagingBuffer
from kernels.layout import IntArray
from kernels.sampling import sample
from kernels.sampling_rows import DrawParams


class GpuSampler:
    """Samples for one model. What it prepares for a set of rows is kept while the set stays."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._staging = StagingBuffer(device)
        self._rows: _Rows | None = None

    def warm_up(self, dtype: torch.dtype) -> None:
        """Draw from nothing, so that no request waits for a kernel to be compiled.

        Args:
            dtype: of the model's logits; with bias they are float32.
        """
        for penalty in (0.0, 1.0):
            params = SamplingParams(temperature=1.0, presence_penalty=penalty)
            request = Request("", 0, [0], params, seed=0, max_tokens=1, stop_token_ids=frozenset())
            for kind in {dtype, torch.float32}:
                logits = torch.zeros(1, self._vocab_size, dtype=kind, device=self._device)
                self.draw(logits, [request]).tokens()

    def draw(self, logits: Tensor | None, requests: list[Request]) -> ComingTokens:
        """Choose the next token of every request, see `model_executor.BatchSampler`."""
        if logits is None:
            return ComingTokens(torch.empty(0, dtype=torch.int32, device=self._device), requests)
        rows = self._prepare_rows(requests)
        changed = logits
        if rows.processors:
            changed = logits.to(torch.float32, copy=True)
            for processor in rows.processors:
                processor.apply(changed)
        seen = rows.seen
        token_ids = sample(changed, rows.params, None if seen is None else seen.rows).token_ids
        if seen is not None:
            seen.add(token_ids)
        return ComingTokens(token_ids, requests, LogprobReport(logits, token_ids, requests))

    def _prepare_rows(self, requests: list[Request]) -> "_Rows":
        positions = np.array([r.num_output_tokens for r in requests], dtype=np.int32)
        rows = self._rows
        if rows is None or not rows.are(requests) or not rows.go_to(positions):
            size, device = self._vocab_size, self._device
            seen = None
            if any(request.params.has_penalties for request in requests):
                seen = SeenCounts(requests, size, device, None if rows is None else rows.seen)
            rows = self._rows = _Rows(
                list(requests),
                positions,
                _upload(requests, positions, size, self._staging),
                build_fixed_processors(requests, size, device),
                seen,
            )
        return rows


@dataclass(slots=True)
class _Rows:
    """What can be prepared for rows as long as they stay the same."""

    requests: list[Request]
    positions: IntArray
    """Of `params`, which are on the device"""
    params: DrawParams
    processors: Sequence[LogitsProcessor]
    seen: SeenCounts | None
    """None: nobody has penalties"""

    def are(self, requests: list[Request]) -> bool:
        """Whether these are the same requests, in the same order."""
        mine = self.requests
        return len(mine) == len(requests) and all(map(operator.is_, mine, requests))

    def go_to(self, positions: IntArray) -> bool:
        """Move every row on by one where that is asked for, on the device; whether it was."""
        if not np.array_equal(positions, self.positions + 1):
            return False
        self.params.position.add_(1)
        self.positions = positions
        return True


def _upload(
    requests: list[Request], positions: IntArray, vocab_size: int, staging: StagingBuffer
) -> DrawParams:
    """Bring what rows are drawn with to the device in one copy, which nobody waits for."""
    params = [request.params for request in requests]
    top_k = [min(p.top_k, vocab_size) if p.top_k > 0 else vocab_size for p in params]
    floats = np.array(
        [[p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params]],
        dtype=np.float32,
    )
    seeds = np.array([request.seed for request in requests], dtype=np.int64)
    choices = np.array([request.choice_index for request in requests], dtype=np.int32)
    arrays = [*floats.view(np.int32), seeds.view(np.int32), choices, positions]
    temperature, top_p, min_p, seed, choice_index, position, keep = staging.upload(
        [*arrays, np.array(top_k, dtype=np.int32)]
    )
    return DrawParams(
        temperature=temperature.view(torch.float32),
        top_k=keep,
        top_p=top_p.view(torch.float32),
        min_p=min_p.view(torch.float32),
        seed=seed.view(torch.int64),
        choice_index=choice_index,
        position=position,
    )
