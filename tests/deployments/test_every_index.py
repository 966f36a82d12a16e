"""A stream of 40 tokens whose engine is killed after k of them, for every k: no client sees it.

Real engines, token servers, token source and HTTP application; Serve and HTTP's sockets are not.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from starlette.applications import Starlette

from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from deployments.served_model import ServedModel
from engine.tokenizer import Tokenizer
from kernels import native_library
from tests.chaos.answer import Answer
from tests.chaos.oracle import OK, judge
from tests.chaos.requests import CHAT, COMPLETIONS, ChaosRequest
from tests.cluster.token_fakes import TIMEOUT_S
from tests.deployments.asgi_client import AsgiCall
from tests.deployments.failover_engines import RealReplicas, engine_config
from tests.oracle import make_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        native_library.find_native_library() is None, reason="needs the compiled CPU kernels"
    ),
]

NUM_TOKENS = 40
BATCH = 10
"""Indices for which one service lives."""
BODY = {
    "max_tokens": NUM_TOKENS,
    "stream": True,
    "temperature": 0,
    "ignore_eos": True,
    "stream_options": {"include_usage": True},
    "prompt": [11, 47, 30, 99, 200, 201, 202],
    "logprobs": 0,
}
SAMPLED = {"temperature": 1.0, "top_p": 0.95, "seed": 5, "logprobs": 2}
PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3}
MESSAGES = [{"role": "user", "content": "Once upon a time"}]
CHAT_BODY = {name: value for name, value in BODY.items() if name != "prompt"}
CASES = {
    "greedy": ChaosRequest("greedy", COMPLETIONS, BODY),
    "everything": ChaosRequest(
        "everything",
        COMPLETIONS,
        {**BODY, **SAMPLED, **PENALTIES, "n": 2, "stop": ["never!"], "min_tokens": 30},
    ),
    "chat": ChaosRequest(
        "chat",
        CHAT,
        {**CHAT_BODY, **SAMPLED, "logprobs": True, "top_logprobs": 1, "messages": MESSAGES},
    ),
}


class Service:
    """An HTTP application on two replicas, one of which may be killed in the midst of an answer."""

    def __init__(self, replicas: RealReplicas, app: Starlette) -> None:
        self.replicas = replicas
        self._app = app
        self._num_replicas = 2

    async def answer(self, request: ChaosRequest, *kills: int) -> Answer:
        """Ask, and kill the engine that has it after so many tokens; then after so many more."""
        gate = self.replicas.gate
        call = AsgiCall(self._app, request.path, request.body)
        if kills:
            gate.arm(kills[0])
        running = asyncio.create_task(call.run())
        num_seen = 0
        for i, _ in enumerate(kills):
            victim = await asyncio.to_thread(gate.wait_held)
            num_seen += gate.num_tokens
            async with asyncio.timeout(TIMEOUT_S):
                while _num_tokens(request, call) < num_seen:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            assert _num_tokens(request, call) == num_seen
            await self.replicas.kill_held(kills[i + 1] if i + 1 < len(kills) else None)
            self._num_replicas += 1
            await self.replicas.replace(victim, f"replica {self._num_replicas}")
        async with asyncio.timeout(TIMEOUT_S):
            await running
        assert call.status == 200, call.body
        answer = _read(request, call)
        assert call.body.endswith(b"\n\ndata: [DONE]\n\n")
        answer.close()
        return answer

    def check_books(self) -> None:
        """Nothing is placed, and no block is used."""
        assert self.replicas.board.num_requests == 0
        for snapshot in self.replicas.source.snapshots():
            assert snapshot.engine.num_usable_blocks == snapshot.engine.num_blocks


def _read(request: ChaosRequest, call: AsgiCall) -> Answer:
    answer = Answer(request, 0.0, status=call.status)
    answer.feed(call.body, 0.0)
    return answer


def _num_tokens(request: ChaosRequest, call: AsgiCall) -> int:
    return sum(len(choice.logprobs) for choice in _read(request, call).choices.values())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("llama"),
        "llama",
        vocab_size=320,
        eos_token_id=2,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )


@asynccontextmanager
async def service(
    model: Path, tokenizer: Tokenizer, *, enable_prefix_caching: bool = False
) -> AsyncIterator[Service]:
    config = engine_config(model, enable_prefix_caching=enable_prefix_caching)
    replicas = RealReplicas(config)
    replicas.source.start()
    try:
        for number in (1, 2):
            await replicas.add(f"replica {number}")
        served = ServedModel("m", max_model_len=256, tokenizer=tokenizer, source=replicas.source)
        yield Service(replicas, build_http_app([served], HttpSettings()))
    finally:
        await replicas.close()


def with_stop(request: ChaosRequest, whole: Answer) -> ChaosRequest:
    """The same with a stop string that its last token but one completes, and no token before."""
    text = whole.choices[0].text
    end = whole.choices[0].logprobs[-1][3]
    stops = (text[start:end] for start in range(end - 2, -1, -1))
    stop = next(stop for stop in stops if text.find(stop) == end - len(stop))
    return ChaosRequest("stop", request.path, {**request.body, "stop": [stop]})


@pytest.mark.parametrize("enable_prefix_caching", [False, True])
@pytest.mark.parametrize("first", range(0, NUM_TOKENS, BATCH))
@pytest.mark.parametrize("name", [*CASES, "stop"])
def test_the_engine_of_a_stream_is_killed_at_every_token(
    name: str, first: int, model: Path, tokenizer: Tokenizer, enable_prefix_caching: bool
) -> None:
    async def run() -> None:
        async with service(model, tokenizer, enable_prefix_caching=enable_prefix_caching) as this:
            if name in CASES:
                request = CASES[name]
            else:
                request = with_stop(CASES["greedy"], await this.answer(CASES["greedy"]))
            expected = await this.answer(request)
            assert judge(expected, None) == OK
            for index in range(first, first + BATCH):
                answer = await this.answer(request, index * request.num_choices)
                assert judge(answer, expected) == OK, index
            counts = this.replicas.source.admission()
            assert counts.num_moved == (first == 0), "the one that had no token"
            assert counts.num_moved + counts.num_resumed == BATCH
            this.check_books()

    asyncio.run(run())


def test_a_stream_outlives_seven_engines(model: Path, tokenizer: Tokenizer) -> None:
    async def run() -> None:
        async with service(model, tokenizer) as this:
            for request in CASES.values():
                n = request.num_choices
                expected = await this.answer(request)
                answer = await this.answer(request, *[n, 8 * n, n, 8 * n, n, 8 * n, n])
                assert judge(answer, expected) == OK
                assert this.replicas.source.admission().num_resumed % 7 == 0
            this.check_books()

    asyncio.run(run())
