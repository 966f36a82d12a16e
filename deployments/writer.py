"""Writes the response to one completion request; the form of a choice is the dialect's own.

The envelope is the same for every dialect. What stays the same in a stream is encoded once: a
token costs one JSON string.
"""

import time
from typing import Any, Final, Protocol

import msgspec

from deployments.completion import Piece, Usage
from deployments.sse import encode_event
from engine.output import FinishReason, TokenLogprob

_encode: Final = msgspec.json.Encoder().encode


class ChoiceForm(Protocol):
    """What a choice looks like, as JSON."""

    object_name: str
    chunk_object_name: str

    def opening(self, index: int) -> bytes:
        """Choice of the first chunk, before any text; empty for none."""

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob]) -> bytes:
        """Choice of a chunk with text."""

    def ending(self, index: int, reason: bytes) -> bytes:
        """Choice of the last chunk; `reason` is JSON."""

    def whole(
        self, index: int, text: str, logprobs: list[TokenLogprob], reason: FinishReason
    ) -> dict[str, Any]:
        """A finished choice."""


class CompletionWriter:
    """Writes one response, as a stream of chunks or whole."""

    def __init__(
        self,
        completion_id: str,
        model_name: str,
        form: ChoiceForm,
        *,
        num_choices: int,
        include_usage: bool,
    ) -> None:
        self._form = form
        self._num_choices = num_choices
        self._include_usage = include_usage
        self._envelope = {
            "id": completion_id,
            "object": form.object_name,
            "created": int(time.time()),
            "model": model_name,
            "system_fingerprint": None,
        }
        self._chunk_envelope = {**self._envelope, "object": form.chunk_object_name}
        self._head = b"data: " + _encode(self._chunk_envelope)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def opening(self) -> bytes:
        """Events before the first piece."""
        choices = [self._form.opening(i) for i in range(self._num_choices)]
        return b"".join(self._wrap(choice) for choice in choices if choice)

    def events(self, piece: Piece) -> bytes:
        """A chunk with the text, then one with the finish reason; none for an empty piece."""
        events = b""
        if piece.text or piece.logprobs:
            events = self._wrap(self._form.delta(piece.choice_index, piece.text, piece.logprobs))
        if piece.finish_reason is not None:
            reason = _encode(piece.finish_reason)
            events += self._wrap(self._form.ending(piece.choice_index, reason))
        return events

    def closing(self, usage: Usage) -> bytes:
        """Events after the last piece: the usage, if asked for."""
        if not self._include_usage:
            return b""
        chunk = {**self._chunk_envelope, "choices": [], "usage": _usage_fields(usage)}
        return encode_event(chunk)

    def answer(self, choices: list[list[Piece]], usage: Usage) -> bytes:
        """The body of a response that is no stream; all pieces of each choice."""
        return _encode(
            {
                **self._envelope,
                "choices": [self._whole(i, pieces) for i, pieces in enumerate(choices)],
                "usage": _usage_fields(usage),
            }
        )

    def _wrap(self, choice: bytes) -> bytes:
        return self._head + choice + self._tail

    def _whole(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        reason = pieces[-1].finish_reason
        assert reason is not None
        text = "".join(piece.text for piece in pieces)
        logprobs = [item for piece in pieces for item in piece.logprobs]
        return self._form.whole(index, text, logprobs, reason)


def _usage_fields(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_completion_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
    }
