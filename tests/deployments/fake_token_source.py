"""A TokenSource that says what the test tells it to, and remembers what it was asked."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator

from cluster.decision import Decision
from cluster.placement import Reason
from cluster.request_times import AttemptTimes, RequestTimes
from cluster.snapshot import AdmissionSnapshot, ReplicaSnapshot
from engine.errors import PageRayError
from engine.output import FinishReason, StartTimes, TokenLogprob, TokenOutput
from engine.request import GenerateRequest
from engine.snapshot import EngineSnapshot
from engine.tokenizer import Tokenizer

NUM_CACHED_TOKENS = 5


def engine_snapshot(**fields: object) -> EngineSnapshot:
    """A serving engine with 100 blocks, ten of them in use."""
    values = {
        "epoch": "e1",
        "sequence": 1,
        "block_size": 16,
        "num_blocks": 100,
        "num_free_blocks": 60,
        "num_evictable_blocks": 30,
        **fields,
    }
    return EngineSnapshot(**values)  # type: ignore[arg-type]


class FakeTokenSource:
    """Every choice says `text`, a token (or `tokens_per_output`) at a time."""

    def __init__(self, tokenizer: Tokenizer, text: str = "The capital of France is Paris.") -> None:
        self.text: str | Callable[[int], str] = text
        """What a choice says, by its index if callable."""
        self.tokens_per_output = 1
        self.error: BaseException | None = None
        self.fail_after: int | None = None
        """Outputs before `error` is raised."""
        self.pause_after: int | None = None
        """Outputs before the source goes silent."""
        self.paused = asyncio.Event()
        self.last_finish_reason = FinishReason.STOP
        self.error_text = "out of luck"
        """What the engine says went wrong, where that reason is an error."""
        self.replicas = [ReplicaSnapshot("r1", engine_snapshot(), age_s=0.1)]
        self.held = AdmissionSnapshot(num_placements=dict.fromkeys(Reason, 0))
        self.known_decisions: dict[str, list[Decision]] = {}
        self.start_times: StartTimes | None = None
        """What the engine says of its way to the first token."""
        self.losses: list[str] = []
        """Why replicas were lost that had the request before."""
        self.requests: list[GenerateRequest] = []
        self.aborted: list[tuple[str, int]] = []
        self.num_open = 0
        self.num_closed_early = 0
        self._tokenizer = tokenizer

    def snapshots(self) -> list[ReplicaSnapshot]:
        """What the test set."""
        return self.replicas

    def admission(self) -> AdmissionSnapshot:
        """What the test set."""
        return self.held

    def decisions(self, request_id: str) -> list[Decision]:
        """What the test set."""
        return self.known_decisions.get(request_id, [])

    async def abort(self, request_id: str, choice_index: int) -> None:
        """Remember it; the choice's next output ends it."""
        assert any(request.request_id == request_id for request in self.requests)
        self.aborted.append((request_id, choice_index))

    async def generate(
        self, request: GenerateRequest, times: RequestTimes
    ) -> AsyncGenerator[TokenOutput]:
        """Interleave the choices, as steps do."""
        self.requests.append(request)
        self.num_open += 1
        complete = False
        for loss in self.losses:
            lost = _begin_attempt(times)
            lost.end()
            lost.loss = loss
        attempt = _begin_attempt(times)
        try:
            num_outputs = 0
            choices = [self._choice(request, i) for i in range(request.params.n)]
            while choices:
                for choice in list(choices):
                    await self._interrupt(num_outputs)
                    output = next(choice)
                    if num_outputs == 0:
                        output.start = self.start_times
                    attempt.take(output)
                    num_outputs += 1
                    if output.finish_reason is not None:
                        choices.remove(choice)
                    yield output
            complete = True
        finally:
            self.num_open -= 1
            attempt.end()
            self.num_closed_early += not complete

    async def _interrupt(self, num_outputs: int) -> None:
        await asyncio.sleep(0)
        if self.error is not None and num_outputs == (self.fail_after or 0):
            raise self.error
        if num_outputs == self.pause_after:
            self.paused.set()
            await asyncio.Event().wait()

    def _choice(self, request: GenerateRequest, index: int) -> Iterator[TokenOutput]:
        text = self.text if isinstance(self.text, str) else self.text(index)
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        max_tokens = request.params.max_tokens or len(token_ids)
        reason = self.last_finish_reason
        if max_tokens < len(token_ids):
            token_ids, reason = token_ids[:max_tokens], FinishReason.LENGTH
        size = self.tokens_per_output
        for start in range(0, len(token_ids), size):
            new = token_ids[start : start + size]
            end = start + size >= len(token_ids)
            if (request.request_id, index) in self.aborted:
                yield TokenOutput(
                    request.request_id, index, start, [], finish_reason=FinishReason.ABORT
                )
                return
            yield TokenOutput(
                request.request_id,
                index,
                start,
                new,
                logprobs=_logprobs(new, request.params.logprobs),
                finish_reason=reason if end else None,
                num_cached_tokens=NUM_CACHED_TOKENS,
                error=self.error_text if end and reason is FinishReason.ERROR else None,
            )


def _begin_attempt(times: RequestTimes) -> AttemptTimes:
    attempt = AttemptTimes()
    attempt.place("r1")
    times.attempts.append(attempt)
    return attempt


def _logprobs(token_ids: list[int], num_top: int | None) -> list[TokenLogprob] | None:
    if num_top is None:
        return None
    return [
        TokenLogprob(
            token_id, -0.5, [(token_id + i, -0.5 - i) for i in range(num_top) if token_id + i < 300]
        )
        for token_id in token_ids
    ]


def overloaded(error: type[PageRayError], *details: object) -> PageRayError:
    """An error with a cause and a fix."""
    return error("No room.", "Try later.", *details)
