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
from engine.logits_processors import LogitsProcessor, build_processors
from engine.request import Request
from kernels.gpu.staging import StagingBuffer
from kernels.layout import IntArray
from kernels.sampling import sample
from kernels.sampling_rows import DrawParams


class GpuSampler:
    """Samples for one model. What it prepares for a set of rows is kept while the set stays."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows: _Rows | None = None
        self._staging: StagingBuffer | None = None

    def warm_up(self, dtype: torch.dtype, device: torch.device) -> None:
        """Draw from nothing, so that no request waits for the kernel to be compiled.

        Args:
            dtype: of the model's logits; with bias or penalties they are float32.
            device: where they will be.
        """
        zeros, ones = (torch.full((1,), value, device=device) for value in (0.0, 1.0))
        params = DrawParams(
            temperature=zeros,
            top_k=ones.int(),
            top_p=ones,
            min_p=zeros,
            seed=ones.long(),
            choice_index=ones.int(),
            position=ones.int(),
        )
        for kind in {dtype, torch.float32}:
            sample(torch.zeros(1, self._vocab_size, dtype=kind, device=device), params)

    def draw(self, logits: Tensor, requests: list[Request], num_ahead: int = 0) -> ComingTokens:
        """Choose the next token of every request, see `model_executor.BatchSampler`."""
        rows = self._prepare_rows(requests, num_ahead, logits.device)
        changed = logits
        if rows.processors:
            changed = logits.to(torch.float32, copy=True)
            for processor in rows.processors:
                processor.apply(changed)
        return ComingTokens(logits, sample(changed, rows.params).token_ids, requests)

    def _prepare_rows(
        self, requests: list[Request], num_ahead: int, device: torch.device
    ) -> "_Rows":
        positions = np.array([r.num_output_tokens for r in requests], dtype=np.int32) + num_ahead
        rows = self._rows
        if rows is None or not rows.are(requests) or not rows.go_to(positions):
            if self._staging is None:
                self._staging = StagingBuffer(device)
            before = rows.processors if rows is not None else ()
            processors = build_processors(requests, self._vocab_size, device, before)
            params = _upload(requests, positions, self._vocab_size, self._staging)
            rows = self._rows = _Rows(list(requests), positions, params, processors)
        return rows


@dataclass(slots=True)
class _Rows:
    """What can be prepared for rows as long as they stay the same."""

    requests: list[Request]
    positions: IntArray
    """Of `params`, which are on the device"""
    params: DrawParams
    processors: Sequence[LogitsProcessor]

    def are(self, requests: list[Request]) -> bool:
        """Whether these are the same requests, in the same order."""
        mine = self.requests
        return len(mine) == len(requests) and all(map(operator.is_, mine, requests))

    def go_to(self, positions: IntArray) -> bool:
        """Move every row on by one where that is asked for, on the device; whether it was."""
        if not np.array_equal(positions, self.positions + 1):
            return np.array_equal(positions, self.positions)
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
