"""Turns a GenerateRequest into the sequences that run, or refuses it with cause and fix.

Looks at the request and the fixed sizes of the engine only; whether there is room just now is
the core's question.
"""

import secrets

from engine.config import EngineConfig
from engine.errors import InvalidRequest, PromptTooLong
from engine.request import GenerateRequest, Request
from engine.sampling_params import SEED_BITS


class Admission:
    """The checks of one engine."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        vocab_size: int,
        num_blocks: int,
    ) -> None:
        self._max_model_len = max_model_len
        self._num_cache_tokens = num_blocks * config.block_size
        self.max_model_len = min(max_model_len, self._num_cache_tokens)
        """Longest prompt plus output: bounded by the model and by the KV cache."""
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size

    def expand(self, request: GenerateRequest, now: float) -> list[Request]:
        """Check the request and make a sequence of each choice that has not ended.

        `now`: the engine's clock.

        Raises InvalidRequest, PromptTooLong.
        """
        params = request.params
        self._check_token_ids(request.prompt_token_ids, "prompt", "The prompt")
        self._check_token_ids(list(params.logit_bias), "logit_bias", "'logit_bias'")
        self._check_token_ids(params.stop_token_ids, "stop_token_ids", "'stop_token_ids'")
        max_tokens = self._resolve_max_tokens(request)
        emitted = self._check_emitted(request, max_tokens)
        deadline = _resolve_deadline(request, now)
        seed = secrets.randbits(SEED_BITS) if params.seed is None else params.seed
        stop_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_token_ids |= self._eos_token_ids
        sequences = [
            Request(
                request_id=request.request_id,
                choice_index=choice_index,
                prompt_token_ids=request.prompt_token_ids,
                token_ids=request.prompt_token_ids + token_ids,
                params=params,
                seed=seed,
                max_tokens=max_tokens,
                stop_token_ids=stop_token_ids,
                cache_salt=request.cache_salt,
                tenant=request.tenant,
                weight=request.weight,
                priority=request.priority,
                deadline=deadline,
            )
            for choice_index, token_ids in emitted.items()
        ]
        if len(sequences) > 1:
            for sequence in sequences:
                sequence.siblings = sequences
        return sequences

    def _check_token_ids(
        self, token_ids: list[int] | tuple[int, ...], param: str, subject: str
    ) -> None:
        if not token_ids:
            return
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(
                    f"{subject} has token id {token_id}, which the model does not know.",
                    f"Send token ids from 0 to {self._vocab_size - 1}.",
                    param=param,
                )

    def _check_emitted(self, request: GenerateRequest, max_tokens: int) -> dict[int, list[int]]:
        """Return what each live choice has by now."""
        num_choices = request.params.n
        if not request.emitted:
            return {choice_index: [] for choice_index in range(num_choices)}
        live = {
            i: token_ids for i, token_ids in enumerate(request.emitted) if token_ids is not None
        }
        for token_ids in live.values():
            self._check_token_ids(token_ids, "emitted", "The output to go on behind")
        longest = max(map(len, live.values()), default=max_tokens)
        if len(request.emitted) != num_choices or longest >= max_tokens:
            raise InvalidRequest(
                f"There is nothing to go on with: {len(request.emitted)} of {num_choices} choices, "
                f"{len(live)} not ended, {longest} of {max_tokens} tokens.",
                "Send what each choice has, short of its end.",
                param="emitted",
            )
        return live

    def _resolve_max_tokens(self, request: GenerateRequest) -> int:
        num_prompt = len(request.prompt_token_ids)
        if num_prompt == 0:
            raise InvalidRequest("The prompt is empty.", "Send at least one token.", param="prompt")
        max_tokens = request.params.max_tokens
        room = self.max_model_len - num_prompt
        if room < 1:
            asked = f"your messages resulted in {num_prompt} tokens"
            fix = "Shorten the messages; at least one token of room is needed to answer."
            raise PromptTooLong(self._describe_limit(asked), fix)
        if max_tokens is None:
            return room
        if max_tokens > room:
            asked = (
                f"you requested {num_prompt + max_tokens} tokens "
                f"({num_prompt} in the messages, {max_tokens} in the completion)"
            )
            fix = f"Shorten the messages or ask for at most {room} tokens."
            raise PromptTooLong(self._describe_limit(asked), fix)
        return max_tokens

    def _describe_limit(self, asked: str) -> str:
        limit = f"This model's maximum context length is {self.max_model_len} tokens"
        if self._num_cache_tokens < self._max_model_len:
            limit += f" ({self._max_model_len}, bounded by the server's KV cache)"
        return f"{limit}. However, {asked}."


def _resolve_deadline(request: GenerateRequest, now: float) -> float | None:
    seconds = request.deadline_s
    if seconds is None:
        return None
    if not seconds > 0:
        raise InvalidRequest(
            f"'deadline_s' is {seconds}.",
            "Send the seconds that you will wait, above 0, or leave it out.",
            param="deadline_s",
        )
    return now + seconds
