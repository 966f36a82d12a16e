"""Text completions in OpenAI's older form: any number of prompts, each with `n` choices."""

from typing import Any, Final

import msgspec

from deployments.completion_schema import CompletionFields, read_prompts
from deployments.dialect import Ask, check_num_choices, generate_requests, new_id
from deployments.http_settings import HttpSettings
from deployments.neutral_fields import COMPLETION_NEUTRAL_FIELDS
from deployments.openai_schema import parse_fields
from deployments.served_model import ServedModel
from deployments.tenant import Tenant
from deployments.token_names import TokenNames, finite_logprob
from deployments.writer import CompletionWriter
from engine.output import FinishReason, TokenLogprob

_encode: Final = msgspec.json.Encoder().encode
_CHECKED_ELSEWHERE: Final = frozenset({"prompt"})


class TextCompletionDialect:
    """Reads text completion requests."""

    operation = "text_completion"

    def __init__(self, model: ServedModel, settings: HttpSettings) -> None:
        self._model = model
        self._settings = settings

    async def read(self, values: dict[str, Any], tenant: Tenant) -> Ask:
        """See Dialect."""
        fields = parse_fields(
            CompletionFields, values, COMPLETION_NEUTRAL_FIELDS, _CHECKED_ELSEWHERE
        )
        params = fields.to_sampling_params()
        given = read_prompts(fields.prompt, self._settings.max_prompts_per_request)
        check_num_choices(len(given), params.n, self._settings)
        prompts = await self._model.encoder.encode_prompts(
            given, add_special_tokens=fields.add_special_tokens
        )
        for token_ids in prompts:
            self._model.encoder.check_fits(token_ids, params.max_tokens, "prompt")
        completion_id = new_id("cmpl-")
        num_choices = len(prompts) * params.n
        return Ask(
            requests=generate_requests(completion_id, prompts, params, tenant, fields),
            stream=fields.stream,
            writer=CompletionWriter(
                completion_id,
                self._model.name,
                TextForm(self._model.texts, num_choices, has_logprobs=fields.logprobs is not None),
                num_choices=num_choices,
                include_usage=fields.include_usage,
            ),
        )


class TextForm:
    """Choices of a text completion; see ChoiceForm."""

    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def __init__(self, texts: TokenNames, num_choices: int, *, has_logprobs: bool) -> None:
        self._texts = texts
        self._has_logprobs = has_logprobs
        self._offsets = [0] * num_choices
        """Characters of each choice's tokens so far."""

    def opening(self, index: int) -> bytes:
        """Nothing: there are no roles."""
        return b""

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob]) -> bytes:
        """A part of the text."""
        return b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null}' % (
            index,
            _encode(text),
            _encode(self._logprobs(index, logprobs)),
        )

    def ending(self, index: int, reason: bytes) -> bytes:
        """The end of the text."""
        return b'{"index":%d,"text":"","logprobs":null,"finish_reason":%b}' % (index, reason)

    def whole(
        self, index: int, text: str, logprobs: list[TokenLogprob], reason: FinishReason
    ) -> dict[str, Any]:
        """The whole text."""
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, logprobs),
            "finish_reason": reason,
        }

    def _logprobs(self, index: int, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        tokens = [self._texts.text(item.token_id) for item in logprobs]
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [finite_logprob(item.logprob) for item in logprobs],
            "top_logprobs": [self._top(item) for item in logprobs],
            "text_offset": offsets,
        }

    def _top(self, item: TokenLogprob) -> dict[str, float]:
        # The drawn token is there whether it is among the best or not.
        ranked = [*item.top, (item.token_id, item.logprob)]
        return {self._texts.text(token_id): finite_logprob(value) for token_id, value in ranked}
