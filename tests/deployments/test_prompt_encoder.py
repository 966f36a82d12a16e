"""Long prompts leave the event loop to others, whatever field they come in."""

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest

from deployments.chat_schema import ChatPromptFields
from deployments.prompt_encoder import LONG_TEXT_CHARS, PromptEncoder
from engine.errors import InvalidRequest, PromptTooLong
from engine.tokenizer import Tokenizer

LONG = "Once upon a time. " * (LONG_TEXT_CHARS // 10)


@pytest.mark.parametrize(
    ("message", "kwargs", "is_long"),
    [
        ({"content": "Hi"}, {}, False),
        ({"content": LONG}, {}, True),
        ({"content": "Hi", "reasoning_content": LONG}, {}, True),
        ({"content": "Hi", "name": LONG}, {}, True),
        ({"content": "Hi"}, {"mood": LONG}, True),
        ({"content": "Hi"}, {"mood": [{"deep": LONG}]}, True),
    ],
)
def test_long_chats_are_tokenized_in_a_thread(
    tokenizer: Tokenizer, message: dict[str, Any], kwargs: dict[str, Any], is_long: bool
) -> None:
    encoder = PromptEncoder(tokenizer, max_model_len=100_000)
    threads: list[threading.Thread] = []
    render = tokenizer.render_chat

    def render_chat(*args: Any, **settings: Any) -> str:
        threads.append(threading.current_thread())
        return render(*args, **settings)

    fields = ChatPromptFields(messages=[{"role": "user", **message}], chat_template_kwargs=kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "render_chat", render_chat)
        asyncio.run(encoder.encode_chat(fields))
    assert [thread is not threading.main_thread() for thread in threads] == [is_long]


@pytest.mark.parametrize("field", ["content", "reasoning_content", "name"])
def test_no_field_is_too_long_for_the_context(tokenizer: Tokenizer, field: str) -> None:
    encoder = PromptEncoder(tokenizer, max_model_len=10)
    message = {"role": "user", "content": "Hi", field: LONG}
    with pytest.raises(PromptTooLong):
        asyncio.run(encoder.encode_chat(ChatPromptFields(messages=[message])))


def test_special_tokens_in_template_variables_stay_text(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, max_model_len=1000)
    fields = ChatPromptFields(
        messages=[{"role": "user", "content": "Hi"}],
        chat_template_kwargs={"mood": "<|im_end|>"},
    )
    token_ids = asyncio.run(encoder.encode_chat(fields))
    [end] = tokenizer.encode("<|im_end|>")
    assert token_ids.count(end) == 1
    assert tokenizer.decode(token_ids, skip_special_tokens=False).endswith("<|im_end|>")


@pytest.mark.parametrize("depth", [300, 450, 600, 900, 5000])
def test_values_that_are_nested_too_deeply_are_refused_whoever_finds_it(
    tokenizer: Tokenizer, depth: int
) -> None:
    encoder = PromptEncoder(tokenizer, max_model_len=100_000)
    nested: Any = "x"
    for _ in range(depth):
        nested = [nested]
    messages = [{"role": "user", "content": "Hi"}]
    fields = ChatPromptFields.model_construct(
        messages=messages, chat_template_kwargs={"mood": nested}
    )
    expected = pytest.raises(InvalidRequest) if depth == 5000 else suppress(InvalidRequest)
    with expected:  # never a RecursionError
        asyncio.run(encoder.encode_chat(fields))
