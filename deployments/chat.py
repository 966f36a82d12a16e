"""Chat completions in OpenAI's form: a chat becomes one prompt, choices become messages."""

from typing import Any, Final

import msgspec

from deployments.chat_schema import ChatFields
from deployments.dialect import Ask, check_num_choices, generate_requests, new_id
from deployments.http_settings import HttpSettings
from deployments.neutral_fields import CHAT_NEUTRAL_FIELDS
from deployments.openai_schema import parse_fields
from deployments.served_model import ServedModel
from deployments.tenant import Tenant
from deployments.token_names import TokenNames, finite_logprob
from deployments.writer import CompletionWriter
from engine.output import FinishReason, TokenLogprob

_encode: Final = msgspec.json.Encoder().encode
_CHECKED_ELSEWHERE: Final = frozenset({"messages"})


class ChatDialect:
    """Reads chat completion requests."""

    operation = "chat"

    def __init__(self, model: ServedModel, settings: HttpSettings) -> None:
        self._model = model
        self._settings = settings

    async def read(self, values: dict[str, Any], tenant: Tenant) -> Ask:
        """See Dialect."""
        fields = parse_fields(ChatFields, values, CHAT_NEUTRAL_FIELDS, _CHECKED_ELSEWHERE)
        params = fields.to_sampling_params()
        check_num_choices(1, params.n, self._settings)
        token_ids = await self._model.encoder.encode_chat(fields)
        self._model.encoder.check_fits(token_ids, params.max_tokens, "messages")
        completion_id = new_id("chatcmpl-")
        return Ask(
            requests=generate_requests(completion_id, [token_ids], params, tenant, fields),
            stream=fields.stream,
            writer=CompletionWriter(
                completion_id,
                self._model.name,
                ChatForm(self._model.texts, has_logprobs=fields.logprobs),
                num_choices=params.n,
                include_usage=fields.include_usage,
            ),
        )


class ChatForm:
    """Choices of a chat completion; see ChoiceForm."""

    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def __init__(self, texts: TokenNames, *, has_logprobs: bool) -> None:
        self._texts = texts
        self._has_logprobs = has_logprobs

    def opening(self, index: int) -> bytes:
        """The role."""
        return (
            b'{"index":%d,"delta":{"role":"assistant","content":"","refusal":null},'
            b'"logprobs":null,"finish_reason":null}' % index
        )

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob]) -> bytes:
        """A part of the message."""
        return b'{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":null}' % (
            index,
            _encode(text),
            _encode(self._logprobs(logprobs)),
        )

    def ending(self, index: int, reason: bytes) -> bytes:
        """The end of the message."""
        return b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}' % (index, reason)

    def whole(
        self, index: int, text: str, logprobs: list[TokenLogprob], reason: FinishReason
    ) -> dict[str, Any]:
        """The whole message."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(logprobs),
            "finish_reason": reason,
        }

    def _logprobs(self, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        content = [
            {
                **self._token(item.token_id, item.logprob),
                "top_logprobs": [self._token(*top) for top in item.top],
            }
            for item in logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._texts.text(token_id),
            "logprob": finite_logprob(logprob),
            "bytes": self._texts.utf8(token_id),
        }
