"""Transforms of logits that a request can ask for: bias, minimum length, penalties.

Each is built for fixed rows, one request a row, and then applied in place every step. All touch
single entries of the logits, so they cost what the text is long and not what the vocabulary is.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.request import Request
from kernels.transfer import to_device

_NO_ENTRIES = np.zeros(0, dtype=np.int64)
_INITIAL_CAPACITY = 64


class LogitsProcessor(Protocol):
    """A transform of the logits of fixed rows."""

    def apply(self, logits: Tensor) -> None:
        """Change logits [num_rows, vocab_size] float32, contiguous, in place."""


class LogitBias:
    """Adds `logit_bias` to the logits it names."""

    def __init__(self, requests: Sequence[Request], vocab_size: int, device: torch.device) -> None:
        entries = [
            (row * vocab_size + token_id, bias)
            for row, request in enumerate(requests)
            for token_id, bias in request.params.logit_bias.items()
        ]
        places = np.array([entry for entry, _ in entries], dtype=np.int64)
        self._entries = to_device(places, device)
        self._biases = to_device(_float_array([bias for _, bias in entries]), device)

    def apply(self, logits: Tensor) -> None:
        """Add the biases."""
        logits.view(-1).index_add_(0, self._entries, self._biases)


class MinTokens:
    """Forbids the tokens that would end a request before its `min_tokens`."""

    def __init__(self, requests: Sequence[Request], vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._rows: list[tuple[Request, NDArray[np.int64]]] = []
        self._num_short = 0
        self._forbidden = torch.empty(0, dtype=torch.int64, device=device)
        for row, request in enumerate(requests):
            if request.num_output_tokens >= request.params.min_tokens:
                continue
            token_ids = [i for i in request.stop_token_ids if i < vocab_size]
            # Who forbids every token gets one that ends the request all the same.
            if 0 < len(token_ids) < vocab_size:
                self._rows.append((request, np.array(token_ids) + row * vocab_size))

    def apply(self, logits: Tensor) -> None:
        """Set forbidden logits to minus infinity."""
        short = [
            entries
            for request, entries in self._rows
            if request.num_output_tokens < request.params.min_tokens
        ]
        if len(short) != self._num_short:  # they get fewer, never others
            self._num_short = len(short)
            self._forbidden = to_device(np.concatenate([_NO_ENTRIES, *short]), self._device)
        logits.view(-1).index_fill_(0, self._forbidden, float("-inf"))


class Penalties:
    """Makes tokens that were seen before less likely.

    First the repetition penalty for tokens in prompt or output: positive logits are divided by
    it, others multiplied. Then `frequency_penalty` for each time a token is in the output, and
    `presence_penalty` once, are subtracted.

    Args:
        requests: one a row, with and without penalties.
        before: what the sampler used for other rows before; what it counted is not counted again.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        vocab_size: int,
        device: torch.device,
        before: "Penalties | None" = None,
    ) -> None:
        rows = [row for row, request in enumerate(requests) if request.params.has_penalties]
        self._device = device
        self._requests = [requests[row] for row in rows]
        known = before._counts if before is not None else {}
        self._counts: dict[Request, TokenCounts] = {
            request: known.get(request) or TokenCounts(request) for request in self._requests
        }
        self._offsets = np.array(rows, dtype=np.int64) * vocab_size
        params = [request.params for request in self._requests]
        self._repetition = _float_array([p.repetition_penalty for p in params])
        self._frequency = _float_array([p.frequency_penalty for p in params])
        self._presence = _float_array([p.presence_penalty for p in params])

    def apply(self, logits: Tensor) -> None:
        """Apply the penalties of every row."""
        counts = list(self._counts.values())
        for count in counts:
            count.update()
        sizes = [count.num_tokens for count in counts]
        entries = np.concatenate([count.token_ids for count in counts])
        entries += np.repeat(self._offsets, sizes)
        num_seen = np.concatenate([count.num_in_output for count in counts])
        subtracted = num_seen * np.repeat(self._frequency, sizes)
        subtracted += (num_seen > 0) * np.repeat(self._presence, sizes)

        index = to_device(entries, self._device)
        flat = logits.view(-1)
        seen = flat[index]
        repetition = to_device(np.repeat(self._repetition, sizes), self._device)
        seen = torch.where(seen > 0, seen / repetition, seen * repetition)
        flat[index] = seen - to_device(subtracted, self._device)


class TokenCounts:
    """The distinct tokens of one request, and how often its output has each."""

    def __init__(self, request: Request) -> None:
        self.num_tokens = 0
        self._request = request
        self._slots: dict[int, int] = {}
        self._token_ids = np.zeros(_INITIAL_CAPACITY, dtype=np.int64)
        self._num_in_output = np.zeros(_INITIAL_CAPACITY, dtype=np.float32)
        # Without a repetition penalty the prompt does not matter.
        skips_prompt = request.params.repetition_penalty == 1
        self._num_read = request.num_prompt_tokens if skips_prompt else 0

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """Distinct tokens, [num_tokens]."""
        return self._token_ids[: self.num_tokens]

    @property
    def num_in_output(self) -> NDArray[np.float32]:
        """How often the output has each of `token_ids`; 0 for those of the prompt alone."""
        return self._num_in_output[: self.num_tokens]

    def update(self) -> None:
        """Count the tokens that the request got since the last call."""
        request = self._request
        for position in range(self._num_read, request.num_tokens):
            slot = self._find_slot(request.token_ids[position])
            if position >= request.num_prompt_tokens:
                self._num_in_output[slot] += 1
        self._num_read = request.num_tokens

    def _find_slot(self, token_id: int) -> int:
        slot = self._slots.setdefault(token_id, self.num_tokens)
        if slot == self.num_tokens:
            if slot == len(self._token_ids):
                self._token_ids = np.concatenate([self._token_ids, self._token_ids])
                self._num_in_output = np.concatenate([self._num_in_output, 0 * self._num_in_output])
            self._token_ids[slot] = token_id
            self.num_tokens += 1
        return slot


def build_processors(
    requests: Sequence[Request],
    vocab_size: int,
    device: torch.device,
    before: Sequence[LogitsProcessor] = (),
) -> list[LogitsProcessor]:
    """Make the processors that the rows need, in the order in which they are applied."""
    processors = build_fixed_processors(requests, vocab_size, device)
    if any(request.params.has_penalties for request in requests):
        former = next((p for p in before if isinstance(p, Penalties)), None)
        processors.append(Penalties(requests, vocab_size, device, former))
    return processors


def build_fixed_processors(
    requests: Sequence[Request], vocab_size: int, device: torch.device
) -> list[LogitsProcessor]:
    """Make those alone that ask nothing of the text but its length: they come first."""
    processors: list[LogitsProcessor] = []
    if any(request.params.logit_bias for request in requests):
        processors.append(LogitBias(requests, vocab_size, device))
    if any(request.num_output_tokens < request.params.min_tokens for request in requests):
        processors.append(MinTokens(requests, vocab_size, device))
    return processors


def _float_array(values: Sequence[float]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)
