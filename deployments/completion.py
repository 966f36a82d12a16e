"""Runs the prompts of one HTTP request: tokens in, text of each choice out.

Knows neither JSON nor HTTP. Closing the iterator of pieces early aborts what is left.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from cluster.request_times import RequestTimes
from cluster.token_source import TokenSource
from deployments.request_timer import ModelMetrics, RequestTimer
from engine.detokenizer import Detokenizer
from engine.errors import DeadlinePassed, PageRayError, ReplicaLost
from engine.output import DEADLINE_PASSED, FinishReason, TokenLogprob, TokenOutput
from engine.request import GenerateRequest
from engine.tokenizer import Tokenizer

MAX_QUEUED_OUTPUTS = 1024
"""Outputs of several prompts that may wait for a slow client before the prompts do."""


class GenerationFailed(PageRayError):
    """The engine could not go on with the request."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one choice gained."""

    choice_index: int
    text: str
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason | None
    """Set on the last piece of the choice."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int


class Choice:
    """One choice as it grows."""

    def __init__(self, index: int, tokenizer: Tokenizer, request: GenerateRequest) -> None:
        self.index = index
        self.finish_reason: FinishReason | None = None
        self.num_cached_tokens = 0
        self._detokenizer = Detokenizer(tokenizer, request.prompt_token_ids, request.params)
        self._num_logprobs = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that the client pays for: none after a stop string."""
        return self._detokenizer.num_tokens_used

    @property
    def hit_stop_string(self) -> bool:
        """Whether the text ended at a stop string, which only this side knows."""
        return self._detokenizer.stop_string is not None

    def take(self, output: TokenOutput) -> Piece:
        """Add tokens. Raises when the engine gave the choice up."""
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        text = self._detokenizer.append(output.token_ids)
        if not self.hit_stop_string:
            _check_not_given_up(output)
        if self.hit_stop_string or output.finish_reason is not None:
            text += self._detokenizer.finish()
            # The last half of a character may have completed a stop string.
            self.finish_reason = FinishReason.STOP if self.hit_stop_string else output.finish_reason
        return Piece(self.index, text, self._used_logprobs(output), self.finish_reason)

    def _used_logprobs(self, output: TokenOutput) -> list[TokenLogprob]:
        if not output.logprobs:
            return []
        used = output.logprobs[: max(self.num_tokens - self._num_logprobs, 0)]
        self._num_logprobs += len(used)
        return used


def _check_not_given_up(output: TokenOutput) -> None:
    if output.error == DEADLINE_PASSED:
        raise DeadlinePassed(
            "The request's 'deadline_s' has passed.", "Allow more time, or ask for fewer tokens."
        )
    if output.finish_reason is FinishReason.ERROR:
        raise GenerationFailed(
            f"The engine failed on this request: {output.error or 'no reason given'}.",
            "Send it again.",
        )
    if output.finish_reason is FinishReason.ABORT:  # nobody here asked for it
        raise ReplicaLost("The replica gave the request up.", "Send it again.")


class Completion:
    """All choices of one HTTP request: those of its first prompt, of its second, and so on."""

    def __init__(
        self,
        source: TokenSource,
        tokenizer: Tokenizer,
        requests: Sequence[GenerateRequest],
        metrics: ModelMetrics,
        arrived_s: float,
    ) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self.requests = requests
        """Of each prompt."""
        self.failure: str | None = None
        """Kind of the error that ended it, if one did."""
        self.times = [RequestTimes(arrived_s) for _ in requests]
        """Of each prompt."""
        self._timer = RequestTimer(metrics, arrived_s)
        self._choices = [
            [Choice(i * request.params.n + k, tokenizer, request) for k in range(request.params.n)]
            for i, request in enumerate(requests)
        ]
        self._num_unfinished = sum(map(len, self._choices))

    @property
    def num_choices(self) -> int:
        """Choices of all prompts."""
        return sum(map(len, self._choices))

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Those of the choices that have ended."""
        return tuple(
            str(choice.finish_reason)
            for choices in self._choices
            for choice in choices
            if choice.finish_reason is not None
        )

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            num_prompt_tokens=sum(len(request.prompt_token_ids) for request in self.requests),
            num_completion_tokens=sum(
                choice.num_tokens for choices in self._choices for choice in choices
            ),
            # The first choice tells what was cached before; the others share its blocks.
            num_cached_tokens=sum(choices[0].num_cached_tokens for choices in self._choices),
        )

    async def pieces(self) -> AsyncGenerator[Piece]:
        """Yield what the choices gain until all have ended.

        Raises InvalidRequest, Overloaded, ReplicaLost and GenerationFailed, before or between
        pieces.
        """
        self._timer.begin()
        ending = FinishReason.ABORT
        try:
            async with aclosing(self._outputs()) as outputs:
                async for prompt_index, output in outputs:
                    choice = self._choices[prompt_index][output.choice_index]
                    if choice.finish_reason is not None:
                        continue  # what the engine made before it heard of the stop string
                    piece = choice.take(output)
                    times = self.times[prompt_index]
                    self._timer.on_piece(
                        choice.index, len(output.token_ids), piece.finish_reason, times
                    )
                    if piece.finish_reason is not None:
                        self._num_unfinished -= 1
                        if output.finish_reason is None:
                            request_id = self.requests[prompt_index].request_id
                            await self._source.abort(request_id, output.choice_index)
                    yield piece
                    if not self._num_unfinished:
                        return
            raise ReplicaLost("The replica ended the request before its last token.", "Try again.")
        except Exception as error:
            self.failure = type(error).__name__
            ending = FinishReason.ERROR
            raise
        finally:
            self._timer.close(self._num_unfinished, ending)

    def note_sent(self) -> None:
        """What the pieces so far hold has gone out to the client."""
        self._timer.on_sent()

    def _outputs(self) -> AsyncGenerator[tuple[int, TokenOutput]]:
        if len(self.requests) == 1:
            return self._outputs_of(0)
        return self._merged_outputs()

    async def _outputs_of(self, prompt_index: int) -> AsyncGenerator[tuple[int, TokenOutput]]:
        outputs = self._source.generate(self.requests[prompt_index], self.times[prompt_index])
        async with aclosing(outputs):
            async for output in outputs:
                yield prompt_index, output

    async def _merged_outputs(self) -> AsyncGenerator[tuple[int, TokenOutput]]:
        queue: asyncio.Queue[tuple[int, TokenOutput] | Exception | None] = asyncio.Queue(
            MAX_QUEUED_OUTPUTS
        )

        async def run(prompt_index: int) -> None:
            try:
                async with aclosing(self._outputs_of(prompt_index)) as outputs:
                    async for item in outputs:
                        await queue.put(item)
            except Exception as error:  # noqa: BLE001  raised again where the queue is read
                await queue.put(error)
            else:
                await queue.put(None)

        tasks = [asyncio.create_task(run(i)) for i in range(len(self.requests))]
        num_open = len(tasks)
        try:
            while num_open:
                item = await queue.get()
                if item is None:
                    num_open -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
