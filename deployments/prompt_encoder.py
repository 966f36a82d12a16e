"""Turns texts and chats into token ids, off the event loop when they are long."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from deployments.chat_messages import TEXTS, read_messages
from deployments.chat_schema import ChatPromptFields
from engine.errors import InvalidRequest, PromptTooLong
from engine.tokenizer import Tokenizer

LONG_TEXT_CHARS = 8_000
"""About 5 ms of tokenizing: longer texts go to a thread, where other streams do not wait."""

ResultT = TypeVar("ResultT")


class PromptEncoder:
    """The tokenizer, with the bounds of the model around it."""

    def __init__(self, tokenizer: Tokenizer, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        longest = max(map(len, tokenizer.backend.get_vocab(with_added_tokens=True)), default=1)
        self._max_chars = max_model_len * longest

    async def encode_prompts(
        self, prompts: list[str | list[int]], *, add_special_tokens: bool
    ) -> list[list[int]]:
        """Token ids of each prompt; those given as such stay. Raises PromptTooLong."""
        num_chars = [len(prompt) for prompt in prompts if isinstance(prompt, str)]
        self._check_num_chars(max(num_chars, default=0), "prompt")

        def encode() -> list[list[int]]:
            return [
                self._tokenizer.encode(prompt, add_special_tokens)
                if isinstance(prompt, str)
                else prompt
                for prompt in prompts
            ]

        return await _run(encode, sum(num_chars))

    async def encode_chat(self, fields: ChatPromptFields) -> list[int]:
        """Token ids of a rendered chat. Raises PromptTooLong, InvalidRequest."""
        messages = read_messages(fields.messages, self._max_model_len)
        texts = [message[name] for message in messages for name in TEXTS & message.keys()]
        num_chars = sum(map(len, texts))
        self._check_num_chars(num_chars, "messages")
        template_kwargs = fields.chat_template_kwargs
        num_chars += _measured(template_kwargs)
        special = self._tokenizer.special_tokens

        def encode() -> list[int]:
            guarded = [
                message | {name: special.guard(message[name]) for name in TEXTS & message.keys()}
                for message in messages
            ]
            text = self._tokenizer.render_chat(
                guarded,
                add_generation_prompt=fields.wants_generation_prompt,
                template_kwargs=_all_guarded(template_kwargs, special.guard),
            )
            if fields.continue_final_message:
                text = _cut_after(text, guarded[-1]["content"])
            self._check_num_chars(len(text), "messages")
            return self._tokenizer.encode_parts(special.parts(text), fields.add_special_tokens)

        return await _run(encode, num_chars)

    def check_fits(self, token_ids: list[int], max_tokens: int | None, param: str) -> None:
        """Raise unless prompt and completion fit the context."""
        num_prompt = len(token_ids)
        if num_prompt == 0:
            raise InvalidRequest("The prompt is empty.", "Send at least one token.", param=param)
        limit = f"This model's maximum context length is {self._max_model_len} tokens."
        room = self._max_model_len - num_prompt
        if room < 1:
            raise PromptTooLong(
                f"{limit} However, your prompt has {num_prompt} tokens.",
                "Shorten it; at least one token of room is needed to answer.",
                param,
            )
        if max_tokens is not None and max_tokens > room:
            raise PromptTooLong(
                f"{limit} However, you requested {num_prompt + max_tokens} tokens "
                f"({num_prompt} in the prompt, {max_tokens} in the completion).",
                f"Shorten the prompt or ask for at most {room} tokens.",
                param,
            )

    def _check_num_chars(self, num_chars: int, param: str) -> None:
        if num_chars > self._max_chars:
            raise PromptTooLong(
                f"This model's maximum context length is {self._max_model_len} tokens. However, "
                f"your prompt has {num_chars} characters, too many to fit.",
                "Shorten it.",
                param,
            )


async def _run(encode: Callable[[], ResultT], num_chars: int) -> ResultT:
    if num_chars > LONG_TEXT_CHARS:
        return await asyncio.to_thread(encode)
    return encode()


def _measured(template_kwargs: dict[str, Any]) -> int:
    """Characters of the values as JSON. Raises InvalidRequest."""
    try:
        return len(msgspec.json.encode(template_kwargs))
    except RecursionError:
        raise _too_deep() from None


def _all_guarded(template_kwargs: dict[str, Any], guard: Callable[[str], str]) -> dict[str, Any]:
    """The values with their texts guarded. Raises InvalidRequest."""
    try:
        return {name: _guarded(value, guard) for name, value in template_kwargs.items()}
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest(
        "'chat_template_kwargs' is nested too deeply.",
        "Send flatter values.",
        param="chat_template_kwargs",
    )


def _guarded(value: Any, guard: Callable[[str], str]) -> Any:
    """A JSON value whose texts are guarded, keys aside."""
    match value:
        case str():
            return guard(value)
        case list():
            return [_guarded(item, guard) for item in value]
        case dict():
            return {name: _guarded(item, guard) for name, item in value.items()}
    return value


def _cut_after(rendered: str, content: str) -> str:
    """Cut what the template puts after the final message; some templates strip the message."""
    stripped = content.strip()
    start = rendered.rfind(stripped)
    if start < 0:
        raise InvalidRequest(
            "The chat template changes the final message, so it cannot be continued.",
            "Leave continue_final_message out.",
            param="continue_final_message",
        )
    kept = content.lstrip()
    whole = rendered.startswith(kept, start)
    return rendered[: start + len(kept if whole else stripped)]
