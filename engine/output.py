"""What comes out of a step."""

from dataclasses import dataclass, field
from enum import StrEnum

from engine.cache_log import CacheChanges

DEADLINE_PASSED = "its deadline has passed"
"""`TokenOutput.error` of a request that was given up because of its deadline."""


class FinishReason(StrEnum):
    """Why a sequence ended; every sequence ends exactly once."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability (natural log, before temperature) of one drawn token."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)
    """The most probable (token id, logprob), best first."""


@dataclass(frozen=True, slots=True)
class StartTimes:
    """How a sequence got to its first token in this engine, in seconds."""

    queue_s: float
    """From its arrival until a step computes something of it."""
    prefill_s: float
    """From there until its first token, waiting between the parts of its prompt included."""


# Not frozen: one is made for every sequence of every step, and frozen ones cost 1 us more each.
@dataclass(slots=True)
class TokenOutput:
    """New tokens of one sequence. `finish_reason` is set on its last output only."""

    request_id: str
    choice_index: int
    index: int
    """Position of the first of `token_ids` in the sequence's output."""
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    """One for each of `token_ids`, if asked for."""
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    error: str | None = None
    """What went wrong, with finish reason `error`."""
    start: StartTimes | None = field(default=None, compare=False)
    """Set on the first output that an engine makes of the sequence."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Result of one engine step."""

    outputs: list[TokenOutput]
    num_scheduled_tokens: int
    num_scheduled_requests: int
    changes: CacheChanges = field(default_factory=CacheChanges)
    """What the prefix cache has gained and lost since the step before."""
