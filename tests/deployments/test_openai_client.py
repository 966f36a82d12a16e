"""The official OpenAI client against the application: what it makes of our responses."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam
from starlette.applications import Starlette

from deployments.tenant import ApiKey
from engine.errors import Overloaded, ReplicaLost
from tests.deployments.conftest import BuildApp
from tests.deployments.fake_token_source import FakeTokenSource

ResultT = TypeVar("ResultT")
MESSAGES: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "What is it?"}]
ANSWER = "The capital of France is Paris."


def ask(
    app: Starlette, use: Callable[[openai.AsyncOpenAI], Awaitable[ResultT]], api_key: str = "none"
) -> ResultT:
    async def run() -> ResultT:
        transport = httpx2.ASGITransport(app=app)
        async with (
            httpx2.AsyncClient(transport=transport) as http_client,
            openai.AsyncOpenAI(
                base_url="http://test/v1", api_key=api_key, http_client=http_client, max_retries=0
            ) as client,
        ):
            return await use(client)

    return asyncio.run(run())


def test_chat(app: Starlette) -> None:
    answer = ask(app, lambda c: c.chat.completions.create(model="tiny", messages=MESSAGES))
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 5


def test_chat_with_choices_and_logprobs(app: Starlette) -> None:
    answer = ask(
        app,
        lambda c: c.chat.completions.create(
            model="tiny", messages=MESSAGES, n=2, logprobs=True, top_logprobs=3
        ),
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        tokens = [item.token for item in choice.logprobs.content]
        assert "".join(tokens) == choice.message.content == ANSWER
        assert choice.logprobs.content[0].top_logprobs[0].logprob == -0.5


def test_chat_stream(app: Starlette) -> None:
    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        stream = await client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            n=2,
            stream=True,
            stream_options={"include_usage": True},
        )
        return [chunk async for chunk in stream]

    *chunks, last = ask(app, use)
    texts = ["", ""]
    reasons: list[list[str]] = [[], []]
    for chunk in chunks:
        assert chunk.object == "chat.completion.chunk"
        assert chunk.id == last.id
        assert chunk.usage is None
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason is not None:
            reasons[choice.index].append(choice.finish_reason)
    assert texts == [ANSWER, ANSWER]
    assert reasons == [["stop"], ["stop"]]
    assert last.choices == []
    assert last.usage.completion_tokens > 0


def test_chat_stream_helper_rebuilds_the_completion(app: Starlette) -> None:
    async def use(client: openai.AsyncOpenAI) -> Any:
        async with client.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
            async for _ in stream:
                pass
            return await stream.get_final_completion()

    completion = ask(app, use)
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"


def test_text_completion_whole_and_streamed(app: Starlette) -> None:
    answer = ask(app, lambda c: c.completions.create(model="tiny", prompt=["a", "b"], logprobs=1))
    assert [choice.text for choice in answer.choices] == [ANSWER, ANSWER]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset is not None
    assert answer.choices[0].logprobs.text_offset[0] == 0

    async def use(client: openai.AsyncOpenAI) -> str:
        stream = await client.completions.create(model="tiny", prompt="a", stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    assert ask(app, use) == ANSWER


def test_models(app: Starlette) -> None:
    models = ask(app, lambda c: c.models.list())
    assert [model.id for model in models.data] == ["tiny"]
    assert ask(app, lambda c: c.models.retrieve("tiny")).owned_by == "pageray"


def test_errors_become_the_clients_own_exceptions(
    app: Starlette, source: FakeTokenSource, build_app: BuildApp
) -> None:
    def create(client: openai.AsyncOpenAI, **fields: Any) -> Awaitable[Any]:
        return client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, **fields})

    with pytest.raises(openai.BadRequestError) as bad:
        ask(app, lambda c: create(c, temperature=1000))
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        ask(app, lambda c: create(c, max_tokens=5000))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(app, lambda c: create(c, model="gpt-5"))
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        ask(build_app(api_keys=(ApiKey.of("sk-1"),)), create)
    assert ask(build_app(api_keys=(ApiKey.of("sk-1"),)), create, api_key="sk-1").choices
    source.error = Overloaded("Full.", "Wait.")
    with pytest.raises(openai.InternalServerError) as full:
        ask(app, lambda c: create(c, stream=True))
    assert full.value.status_code == 503


def test_error_in_the_middle_of_a_stream_is_raised(app: Starlette, source: FakeTokenSource) -> None:
    source.error = ReplicaLost("The replica died.", "Send it again.")
    source.fail_after = 3
    seen = ""

    async def use(client: openai.AsyncOpenAI) -> None:
        nonlocal seen
        stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        async for chunk in stream:
            seen += chunk.choices[0].delta.content or ""

    with pytest.raises(openai.APIError, match=r"The replica died\. Send it again\."):
        ask(app, use)
    assert seen == "The capital of"
