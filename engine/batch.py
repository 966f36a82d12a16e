"""What one step runs."""

from dataclasses import dataclass, field

from engine.block_move import BlockMove
from engine.output import StartTimes, TokenLogprob, TokenOutput
from engine.request import Request


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A sequence and how many of its next tokens this step computes."""

    request: Request
    num_scheduled_tokens: int


@dataclass(slots=True)
class Batch:
    """Sequences of one step: those that decode (one token) first, then those that prefill."""

    requests: list[ScheduledRequest]
    moves: list[BlockMove] = field(default_factory=list)
    """Copies of blocks to make first, in order."""
    starts: list[int] = field(init=False)
    """Tokens that each sequence has computed before."""
    wanting: list[int] = field(init=False)
    """Those whose last token the step reaches, so that the next one is drawn."""

    def __post_init__(self) -> None:
        """Note where its sequences stand: they move on as soon as the step is submitted."""
        self.starts = [scheduled.request.num_computed_tokens for scheduled in self.requests]
        self.wanting = [
            i
            for i, scheduled in enumerate(self.requests)
            if self.starts[i] + scheduled.num_scheduled_tokens == scheduled.request.num_tokens
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return sum(scheduled.num_scheduled_tokens for scheduled in self.requests)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token drawn for one sequence."""

    token_id: int
    logprob: TokenLogprob | None = None

    def tell(self, request: Request, now: float) -> TokenOutput:
        """Tell the request, which has expected it; return what its client is told."""
        index = request.num_known_tokens - request.num_prompt_tokens
        start = None
        if index == request.num_resumed_tokens:
            start = StartTimes(request.started_s - request.arrival_s, now - request.started_s)
        finish_reason = request.learn(self.token_id)
        return TokenOutput(
            request.request_id,
            request.choice_index,
            index,
            [self.token_id],
            None if self.logprob is None else [self.logprob],
            finish_reason,
            request.num_cached_tokens,
            start=start,
        )
