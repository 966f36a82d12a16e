"""POST /tokenize and /detokenize, in the form that vLLM gave them."""

import asyncio
from typing import Annotated, Any

import msgspec
from pydantic import WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from deployments.chat_schema import ChatPromptFields
from deployments.http_errors import JSON
from deployments.http_settings import HttpSettings
from deployments.json_body import read_json_object
from deployments.openai_schema import Fields, parse_fields
from deployments.served_model import ServedModel, ServedModels
from engine.errors import InvalidRequest

LONG_LIST_TOKENS = 5_000
"""Longer ones are decoded in a thread."""


class TokenizeTextFields(Fields):
    """A text to tokenize."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatFields(ChatPromptFields):
    """A chat to render and tokenize."""

    model: str | None = None
    return_token_strs: bool = False


class DetokenizeFields(Fields):
    """Tokens to turn into text. The token ids are checked apart."""

    model: str | None = None
    tokens: Annotated[
        Any, WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}})
    ]


class TokenizeRoutes:
    """The tokenizers over HTTP."""

    def __init__(self, models: ServedModels, settings: HttpSettings) -> None:
        self._models = models
        self._settings = settings

    async def tokenize(self, request: Request) -> Response:
        """Text or chat to token ids."""
        values = await read_json_object(request.scope, request.receive, self._settings)
        model = self._models.choose(request.scope, values)
        if "messages" in values:
            chat = parse_fields(TokenizeChatFields, values, unbounded=frozenset({"messages"}))
            token_ids = await model.encoder.encode_chat(chat)
            with_texts = chat.return_token_strs
        else:
            text = parse_fields(TokenizeTextFields, values)
            [token_ids] = await model.encoder.encode_prompts(
                [text.prompt], add_special_tokens=text.add_special_tokens
            )
            with_texts = text.return_token_strs
        result: dict[str, Any] = {
            "count": len(token_ids),
            "max_model_len": model.max_model_len,
            "tokens": token_ids,
        }
        if with_texts:
            result["token_strs"] = [model.texts.text(token_id) for token_id in token_ids]
        return Response(msgspec.json.encode(result), media_type=JSON)

    async def detokenize(self, request: Request) -> Response:
        """Token ids to text."""
        values = await read_json_object(request.scope, request.receive, self._settings)
        model = self._models.choose(request.scope, values)
        fields = parse_fields(DetokenizeFields, values, unbounded=frozenset({"tokens"}))
        token_ids = _read_token_ids(fields.tokens, model)
        if len(token_ids) > LONG_LIST_TOKENS:
            # `decode` would hold the interpreter lock throughout, and a thread would not help.
            decode = model.tokenizer.backend.decode_batch
            [text] = await asyncio.to_thread(decode, [token_ids], skip_special_tokens=False)
        else:
            text = model.tokenizer.decode(token_ids, skip_special_tokens=False)
        return Response(msgspec.json.encode({"prompt": text}), media_type=JSON)


def _read_token_ids(tokens: Any, model: ServedModel) -> list[int]:
    if not isinstance(tokens, list) or not all(type(item) is int for item in tokens):
        raise InvalidRequest(
            "'tokens' is not a list of token ids.", "Send integers.", param="tokens"
        )
    if len(tokens) > model.max_model_len:
        raise InvalidRequest(
            f"'tokens' has {len(tokens)} token ids.",
            f"Send at most {model.max_model_len}.",
            param="tokens",
        )
    size = model.tokenizer.vocab_size
    if tokens and (min(tokens) < 0 or max(tokens) >= size):
        raise InvalidRequest(
            "'tokens' has a token id that the tokenizer does not know.",
            f"Send token ids from 0 to {size - 1}.",
            param="tokens",
        )
    return tokens
