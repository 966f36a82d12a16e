"""Runs a set of requests to their end, in the caller's thread, and gathers their text.

What EngineLoop and a frontend do for a service, for the offline API.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.core import EngineCore
from engine.detokenizer import Detokenizer
from engine.errors import Overloaded
from engine.output import FinishReason, TokenLogprob, TokenOutput
from engine.request import GenerateRequest
from engine.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Called with the number of prompts finished and of all."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer."""

    text: str
    token_ids: list[int]
    """All tokens up to the one that ended it: end-of-sequence, or the last of a stop string."""
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    """One for each of `token_ids`, if asked for."""
    error: str | None = None
    """What went wrong, with finish reason `error`."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What came of one prompt."""

    prompt_token_ids: list[int]
    choices: list[Choice]


class GenerationRun:
    """A set of requests on a core that has no others."""

    def __init__(
        self,
        core: EngineCore,
        tokenizer: Tokenizer,
        requests: Sequence[GenerateRequest],
        progress: Progress | None = None,
    ) -> None:
        self._core = core
        self._requests = list(requests)
        self._waiting = deque(requests)
        self._progress = progress
        self._num_finished = 0
        self._drafts = {
            request.request_id: [_Draft(tokenizer, request) for _ in range(request.params.n)]
            for request in requests
        }

    def run(self) -> list[Generation]:
        """Return the generations in the order of the requests.

        Whatever it raises, the core holds no requests afterwards.
        """
        try:
            while self._waiting or self._core.has_work:
                self._feed()
                for output in self._core.step().outputs:
                    self._take(output)
        finally:
            self._core.abort_all()
        return [
            Generation(
                request.prompt_token_ids,
                [draft.choice() for draft in self._drafts[request.request_id]],
            )
            for request in self._requests
        ]

    def _feed(self) -> None:
        """Add requests until the core has enough."""
        while self._waiting:
            try:
                self._core.add(self._waiting[0])
            except Overloaded:
                # The steps to come make room, so there must be some.
                if not self._core.has_work:
                    raise
                return
            self._waiting.popleft()

    def _take(self, output: TokenOutput) -> None:
        drafts = self._drafts[output.request_id]
        draft = drafts[output.choice_index]
        draft.append(output)
        if draft.finish_reason is None:
            return
        if output.finish_reason is None:
            # The engine does not know of the stop string that was found.
            self._core.abort(output.request_id, output.choice_index)
        if self._progress is not None and all(d.finish_reason is not None for d in drafts):
            self._num_finished += 1
            self._progress(self._num_finished, len(self._requests))


class _Draft:
    """A choice under way."""

    def __init__(self, tokenizer: Tokenizer, request: GenerateRequest) -> None:
        self.finish_reason: FinishReason | None = None
        self._detokenizer = Detokenizer(tokenizer, request.prompt_token_ids, request.params)
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] | None = None if request.params.logprobs is None else []
        self._error: str | None = None

    def append(self, output: TokenOutput) -> None:
        """Take what a step brought; sets `finish_reason` when it was the last."""
        self._token_ids += output.token_ids
        if self._logprobs is not None:
            self._logprobs += output.logprobs or []
        self._error = output.error
        self._pieces.append(self._detokenizer.append(output.token_ids))
        if output.finish_reason is not None:
            self._pieces.append(self._detokenizer.finish())
        has_stopped = self._detokenizer.stop_string is not None
        self.finish_reason = FinishReason.STOP if has_stopped else output.finish_reason

    def choice(self) -> Choice:
        """Return the finished choice."""
        assert self.finish_reason is not None, "the run is not over"
        num_tokens = self._detokenizer.num_tokens_used
        return Choice(
            "".join(self._pieces),
            self._token_ids[:num_tokens],
            self.finish_reason,
            None if self._logprobs is None else self._logprobs[:num_tokens],
            self._error,
        )
