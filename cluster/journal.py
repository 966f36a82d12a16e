"""What the client of one request has of it, and what befell the replicas that worked on it.

With it any replica goes on where another one was lost. Outputs say of which attempt they are and
where they belong, so what a lost replica still says, or says twice, is recognised.
"""

import secrets
from dataclasses import replace
from typing import Final

from engine.errors import PageRayError, ReplicaLost
from engine.output import FinishReason, TokenOutput
from engine.request import GenerateRequest
from engine.sampling_params import SEED_BITS

MAX_STRIKES: Final = 2
"""Replicas that may be lost, one after the other, each before it brought much."""
MIN_PROGRESS: Final = 8
"""Tokens that make a replica's loss no fault of the request: what it dies of comes early, or again
at once where it came before."""
MAX_LOST: Final = 8
"""Replicas that may be lost in all."""
MAX_REFUSALS: Final = 4
"""Engines that may refuse a request of which nothing has come yet."""


class Poisonous(PageRayError):
    """Every replica that had the request died of it, or might have."""


class Journal:
    """Every token of one request that was handed on, and its attempts."""

    def __init__(self, request: GenerateRequest) -> None:
        params = request.params
        if params.seed is None and not params.is_greedy:
            # Now, so that every replica draws alike.
            params = replace(params, seed=secrets.randbits(SEED_BITS))
        self._request = replace(request, params=params)
        self._emitted: list[list[int]] = [[] for _ in range(params.n)]
        self._open = set(range(params.n))
        self._unwanted: set[int] = set()
        """Open choices whose client has what it wants of them."""
        self._num_attempts = 0
        self._num_new_tokens = 0
        """Of the present attempt."""
        self._num_strikes = 0
        self._num_lost = 0
        self._num_refusals = 0
        self._resumed: set[int] = set()
        """Choices that had tokens before the present attempt."""

    @property
    def is_open(self) -> bool:
        """Whether a choice is left that has not ended."""
        return bool(self._open)

    @property
    def has_begun(self) -> bool:
        """Whether its client may have seen something."""
        return any(self._emitted)

    @property
    def is_suspect(self) -> bool:
        """Whether the last replica may have died of it, and this one has not had much of it yet."""
        return self._num_strikes > 0 and self._num_new_tokens < MIN_PROGRESS

    @property
    def num_attempts(self) -> int:
        """Attempts so far."""
        return self._num_attempts

    @property
    def num_lost(self) -> int:
        """Replicas that were lost while they had it."""
        return self._num_lost

    def next_attempt(self) -> GenerateRequest:
        """Return what the next replica is asked, under an id of its own."""
        number = self._num_attempts
        self._num_attempts += 1
        self._num_new_tokens = 0
        self._resumed = {choice for choice, tokens in enumerate(self._emitted) if tokens}
        emitted: list[list[int] | None] = []
        if self._resumed or len(self._open) < len(self._emitted):
            emitted = [
                list(tokens) if choice in self._open else None
                for choice, tokens in enumerate(self._emitted)
            ]
        request_id = f"{self._request.request_id}.{number}"
        return replace(self._request, request_id=request_id, emitted=emitted)

    def take(self, output: TokenOutput) -> TokenOutput | None:
        """Note what the present attempt has brought; None: its client has it already.

        Raises ReplicaLost when it does not follow on what there is, or the replica gives up.
        """
        choice = output.choice_index
        if choice not in self._open:
            return None
        emitted = self._emitted[choice]
        if output.token_ids:
            if output.index < len(emitted):
                return None
            if output.index > len(emitted):
                raise ReplicaLost(
                    f"token {len(emitted)} of choice {choice} is missing.", "Place it again."
                )
            emitted += output.token_ids
            self._num_new_tokens += len(output.token_ids)
        if choice in self._resumed:
            output.num_cached_tokens = 0  # the first attempt has told how much of the prompt was
        if output.finish_reason is FinishReason.ABORT and choice not in self._unwanted:
            raise ReplicaLost("the replica has given the request up.", "Place it again.")
        if output.finish_reason is not None:
            self._open.remove(choice)
        return output

    def abort(self, choice_index: int) -> None:
        """Nobody wants more of this choice."""
        self._unwanted.add(choice_index)

    def end_unwanted(self) -> list[TokenOutput]:
        """End the choices that nobody needs to go on with, and return their ends."""
        ended = sorted(self._unwanted & self._open)
        self._open.difference_update(ended)
        return [
            TokenOutput(
                self._request.request_id,
                choice,
                len(self._emitted[choice]),
                [],
                finish_reason=FinishReason.ABORT,
            )
            for choice in ended
        ]

    def lose(self, error: ReplicaLost, *, was_accepted: bool) -> None:
        """Note that the present attempt is lost; `was_accepted`: an engine had it.

        Raises Poisonous when no other replica should be tried.
        """
        self._num_lost += 1
        if self._num_new_tokens >= MIN_PROGRESS:
            self._num_strikes = 0
        else:
            self._num_strikes += was_accepted
        if self._num_strikes >= MAX_STRIKES or self._num_lost > MAX_LOST:
            raise Poisonous(
                f"{self._num_lost} replicas were lost when they worked on the request.",
                "Send another one; the log of the replicas may say what is wrong with it.",
            ) from error

    def refuse(self, error: PageRayError) -> None:
        """Note that an engine had no room; raises the error when that is its client's answer."""
        self._num_refusals += 1
        if not self.has_begun and self._num_refusals >= MAX_REFUSALS:
            raise error
