"""What one step runs."""

from dataclasses import dataclass, field

from engine.block_move import BlockMove
from engine.output import TokenLogprob, TokenOutput
from engine.request import Request


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A sequence and how many of its next tokens this step computes."""

    request: Request
    num_scheduled_tokens: int

    @property
    def needs_token(self) -> bool:
        """Whether the step reaches the last known token, so that the next one is drawn."""
        request = self.request
        return request.num_computed_tokens + self.num_scheduled_tokens == request.num_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of one step: those that decode (one token) first, then those that prefill."""

    requests: list[ScheduledRequest]
    moves: list[BlockMove] = field(default_factory=list)
    """Copies of blocks to make first, in order."""
    is_ahead: bool = False
    """Decodes that follow on a step whose tokens nobody knows yet."""

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return sum(scheduled.num_scheduled_tokens for scheduled in self.requests)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token drawn for one sequence."""

    token_id: int
    logprob: TokenLogprob | None = None

    def append_to(self, request: Request) -> TokenOutput:
        """Make it the request's next token; return what its client is told."""
        index = request.num_output_tokens
        finish_reason = request.append(self.token_id)
        return TokenOutput(
            request.request_id,
            request.choice_index,
            index,
            [self.token_id],
            None if self.logprob is None else [self.logprob],
            finish_reason,
            request.num_cached_tokens,
        )
