"""The token transport with the real engine loop behind it, on a model that is its own oracle."""

import asyncio
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest

from cluster.prefix_index import KEY_BYTES, PrefixIndex, block_key, prompt_keys
from cluster.submit_client import SubmitClient
from cluster.token_server import TokenServer
from cluster.token_stream import CHANNEL_OPTIONS
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import PromptTooLong
from engine.loop import EngineLoop
from engine.prefix_hash import block_hashes, root_hash
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.cluster.token_fakes import (
    HOST,
    TIMEOUT_S,
    TOKEN,
    FakeEngine,
    Received,
    Relay,
    Setup,
    make_request,
    serving,
)
from tests.fakes import FakeExecutor

NUM_BLOCKS = 40
VOCAB_SIZE = 1000


def make_engine() -> tuple[EngineLoop, TokenServer, FakeExecutor]:
    config = EngineConfig(model_path=Path("fake"), model_name="fake", block_size=4)
    executor = FakeExecutor(NUM_BLOCKS, 4, vocab_size=VOCAB_SIZE)
    core = EngineCore(
        config, executor, max_model_len=100, eos_token_ids=frozenset(), vocab_size=VOCAB_SIZE
    )
    failures: list[BaseException] = []
    loop = EngineLoop(
        core,
        on_step=lambda output, snapshot: server.on_step(output, snapshot),
        on_failure=failures.append,
    )
    server = TokenServer(loop, token=TOKEN, host=HOST)
    return loop, server, executor


def make_requests() -> dict[str, GenerateRequest]:
    return {
        f"r{i}": GenerateRequest(
            request_id=f"r{i}",
            prompt_token_ids=list(range(i, i + 5 + i % 7)),
            params=SamplingParams(n=1 + i % 2, max_tokens=10 + i % 5, seed=i),
        )
        for i in range(30)
    }


async def check_tokens(
    received: Received, requests: dict[str, GenerateRequest], executor: FakeExecutor
) -> None:
    """Wait for the end of the requests and compare their tokens with the oracle's."""
    num_choices = sum(request.params.n for request in requests.values())
    await received.wait(
        lambda: sum(each.finish_reason is not None for each in received.outputs) == num_choices
    )
    tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
    for each in received.outputs:
        choice = tokens[each.request_id, each.choice_index]
        assert each.index == len(choice)
        choice += each.token_ids
    assert tokens == {
        (request_id, choice_index): executor.model.generate(
            request, choice_index, request.params.max_tokens or 0, frozenset()
        )
        for request_id, request in requests.items()
        for choice_index in range(request.params.n)
    }
    assert sorted(received.accepted) == sorted(requests)


def test_every_request_of_two_frontends_gets_exactly_the_tokens_of_the_model() -> None:
    async def run() -> None:
        engine, server, executor = make_engine()
        setup = Setup(FakeEngine(), server, await server.start())
        engine.start()
        try:
            ears = [await setup.frontend("f0"), await setup.frontend("f1")]
            supervisor = await setup.supervisor()
            requests = make_requests()
            async with asyncio.timeout(TIMEOUT_S):
                submissions = [
                    supervisor.submit(f"f{i % 2}", request)
                    for i, request in enumerate(requests.values())
                ]
                await asyncio.gather(*submissions)
            with pytest.raises(PromptTooLong):
                await supervisor.submit("f0", make_request("long", num_prompt_tokens=500))
            for i, received in enumerate(ears):
                own = {f"r{j}": requests[f"r{j}"] for j in range(i, 30, 2)}
                await check_tokens(received, own, executor)
            assert engine.snapshot().num_usable_blocks == NUM_BLOCKS
        finally:
            await setup.close()
            assert await asyncio.to_thread(engine.stop, TIMEOUT_S)
            await server.stop()

    asyncio.run(run())


@pytest.mark.slow
def test_peer_that_falls_silent_is_noticed_and_one_that_is_only_idle_is_not() -> None:
    async def run() -> None:
        async with serving() as setup:
            relay = Relay(setup.address)
            address = await relay.start()
            idle = await setup.supervisor()
            silent = SubmitClient(address, token=TOKEN, peer_id="silent")
            await silent.connect()
            relay.hold()
            assert "ping timeout" in await silent.wait_lost()
            await silent.close()
            await relay.close()
            # A server that took our pings for abuse would hang up after the fifth.
            lost = asyncio.create_task(idle.wait_lost())
            period_s = dict(CHANNEL_OPTIONS)["grpc.keepalive_time_ms"] / 1000
            assert not (await asyncio.wait({lost}, timeout=7 * period_s))[0]
            lost.cancel()

    asyncio.run(run())


def test_every_frontend_knows_what_is_cached_whenever_it_comes() -> None:
    async def run() -> None:
        engine, server, executor = make_engine()
        setup = Setup(FakeEngine(), server, await server.start())
        engine.start()
        try:
            early = await setup.frontend("f0")
            silent = await setup.frontend("f1")
            supervisor = await setup.supervisor()
            requests = make_requests()
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.gather(*(supervisor.submit("f0", r) for r in requests.values()))
            await check_tokens(early, requests, executor)
            late = await setup.frontend("f2")
            cached = {key[:KEY_BYTES] for key in engine._core._pool._cached}
            # More was cached over time than there is room for.
            assert len(cached) > NUM_BLOCKS // 2
            for received in (early, silent, late):
                await received.wait(partial(knows, received, cached))
            assert any(frame.changes.removed for frame in early.frames)
            assert not any(frame.changes.removed for frame in late.frames)
            index = PrefixIndex()
            index.add(0, map(block_key, late.cached))
            for request in requests.values():
                keys = prompt_keys(request, "fake", 4)
                found = engine._core._pool.count_cached(block_hashes_of(request))
                assert index.overlaps(keys, 1).tolist() == [found]
        finally:
            await setup.close()
            assert await asyncio.to_thread(engine.stop, TIMEOUT_S)
            await server.stop()

    asyncio.run(run())


def knows(received: Received, cached: set[bytes]) -> bool:
    return received.cached == cached


def block_hashes_of(request: GenerateRequest) -> list[bytes]:
    return block_hashes(root_hash("fake", request.cache_salt), request.prompt_token_ids, 4)
