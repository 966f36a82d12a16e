"""What a client asks of the sampler, checked once at the door."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from engine.errors import InvalidRequest

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 1024
MAX_COUNT = 2**31 - 1
"""Bound of every count and token id: they travel and compute as 32-bit integers."""
SEED_BITS = 63
RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "n": (1, MAX_CHOICES),
    "max_tokens": (1, MAX_COUNT),
    "min_tokens": (0, MAX_COUNT),
    "temperature": (0, 100),
    "top_k": (-1, MAX_COUNT),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
    "seed": (-(2**SEED_BITS), 2**SEED_BITS - 1),
    "logprobs": (0, MAX_LOGPROBS),
}
"""Least and greatest value of each number. None, where a field may be that, is in range."""
BIAS_RANGE: Final = (-100, 100)
LENGTHS: Final[Mapping[str, int]] = {
    "stop": MAX_STOP_STRINGS,
    "stop_token_ids": MAX_STOP_TOKEN_IDS,
    "logit_bias": MAX_LOGIT_BIASES,
}
"""Most entries of each collection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw tokens and when to stop. Raises InvalidRequest naming the field at fault."""

    n: int = 1
    """Choices to generate for one prompt."""
    max_tokens: int | None = None
    """Most tokens to generate for each choice; None: as many as the context holds."""
    min_tokens: int = 0
    """No end-of-sequence or stop token is drawn before this many tokens."""
    temperature: float = 1.0
    """0 takes the most probable token."""
    top_k: int = 0
    """Draw from the k most probable tokens; 0 or -1: from all."""
    top_p: float = 1.0
    """Draw from the smallest set of most probable tokens whose mass reaches this."""
    min_p: float = 0.0
    """Drop tokens less probable than this share of the most probable one."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token already generated."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time the token was generated."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id to a value added to its logit."""
    seed: int | None = None
    """Same seed, same tokens, wherever and with whomever it runs; None: one is given."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are cut off unless `include_stop`."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the generation."""
    include_stop: bool = False
    """Keep the stop string in the text."""
    ignore_eos: bool = False
    """Go on after the model's end-of-sequence tokens."""
    logprobs: int | None = None
    """Report each token's log probability and this many alternatives; None: no report."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""

    def __post_init__(self) -> None:
        """Check every field."""
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None:
                self._check_range(name, value, low, high)
        if self.max_tokens is not None:
            self._check_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.top_p == 0:
            self._fail("top_p", "must be above 0", "Leave top_p out, or set temperature to 0.")
        for name, limit in LENGTHS.items():
            self._check_length(name, len(getattr(self, name)), limit)
        self._check_stop()
        for token_id, bias in self.logit_bias.items():
            self._check_range("logit_bias", token_id, 0, MAX_COUNT)
            self._check_range("logit_bias", bias, *BIAS_RANGE)

    def _check_stop(self) -> None:
        for token_id in self.stop_token_ids:
            self._check_range("stop_token_ids", token_id, 0, MAX_COUNT)
        for text in self.stop:
            if not 0 < len(text) <= MAX_STOP_STRING_CHARS:
                fix = f"Send strings of 1 to {MAX_STOP_STRING_CHARS} characters."
                self._fail("stop", f"has a string of {len(text)} characters", fix)
            if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                self._fail("stop", "has half of a surrogate pair", "Send valid Unicode.")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        """Whether logits depend on the tokens seen so far."""
        return (
            self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.repetition_penalty != 1
        )

    def _check_range(self, name: str, value: float, low: float, high: float) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            self._fail(name, f"is {value}", "Send a finite number.")
        if not low <= value <= high:
            # An integer of a thousand digits is not worth repeating.
            shown = value if abs(value) <= 2**SEED_BITS else "out of range"
            self._fail(name, f"is {shown}", f"Send a value between {low} and {high}.")

    def _check_length(self, name: str, length: int, limit: int) -> None:
        if length > limit:
            self._fail(name, f"has {length} entries", f"Send at most {limit}.")

    def _fail(self, name: str, what: str, fix: str) -> None:
        raise InvalidRequest(f"'{name}' {what}.", fix, param=name)
