"""The frontend's token source over a real token stream, with a Serve handle of our own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from unittest import mock

import pytest

from cluster.admission import Admission
from cluster.admission_limits import AdmissionLimits
from cluster.board import Board
from cluster.messages import WireError
from cluster.request_need import RequestNeed
from cluster.request_times import RequestTimes
from cluster.submit_client import SubmitClient
from cluster.token_client import TokenClient
from deployments import token_source
from deployments.token_source import ServeTokenSource
from engine.errors import Overloaded, PageRayError
from engine.output import FinishReason
from engine.request import GenerateRequest
from tests.cluster.token_fakes import (
    TIMEOUT_S,
    TOKEN,
    FakeEngine,
    Setup,
    make_request,
    output,
    serving,
)


class Handle:
    """Stands for Serve's handle: each call reaches the supervisor once the way is open."""

    def __init__(self, supervisor: SubmitClient) -> None:
        self.supervisor = supervisor
        self.generate = self
        self.calls: list[asyncio.Task[WireError | None]] = []
        self.is_open = asyncio.Event()
        self.is_open.set()

    def remote(self, frontend_id: str, request: GenerateRequest) -> "asyncio.Task[Any]":
        self.calls.append(asyncio.create_task(self._generate(frontend_id, request)))
        return self.calls[-1]

    async def _generate(self, frontend_id: str, request: GenerateRequest) -> WireError | None:
        await self.is_open.wait()
        try:
            await self.supervisor.submit(frontend_id, request)
        except PageRayError as error:
            return WireError.from_error(error)
        return None


class Frontend:
    """A source with one replica that it is connected to."""

    def __init__(self, setup: Setup, handle: Handle) -> None:
        self.setup = setup
        self.handle = handle
        self.board = Board()
        self.join()
        admission = Admission(
            self.board, AdmissionLimits(), model_name="m", block_size=16, ttft_objective_s=1.0
        )
        self.source = ServeTokenSource(handle, self.board, admission, "frontend")  # type: ignore[arg-type]

    def join(self, **others: Setup) -> None:
        setups = {"a": self.setup, **others}
        self.board.set_members(
            {name: {"address": setup.address, "token": TOKEN} for name, setup in setups.items()}
        )

    async def lead_elsewhere(self, attempt_id: str, other: Setup) -> None:
        """Let Serve choose this other replica for the call."""
        self.join(b=other)
        await self.reported(2)
        assert self.board.choose_again(RequestNeed.of(make_request(attempt_id), ()), {"b"}) == "b"
        self.handle.supervisor = await other.supervisor()
        self.handle.is_open.set()

    async def reported(self, num_replicas: int) -> None:
        while len(self.source.snapshots()) < num_replicas:  # noqa: ASYNC110  the board tells nobody
            await asyncio.sleep(0.01)

    async def answer(self, request_id: str) -> list[int]:
        """Run a request to its end; return its tokens."""
        tokens: list[int] = []
        async with aclosing(
            self.source.generate(make_request(request_id), RequestTimes(0.0))
        ) as outputs:
            async for each in outputs:
                tokens += each.token_ids
        return tokens

    async def added(self, setup: Setup | None = None) -> str:
        """Return the attempt that the engine was given next."""
        engine = (setup or self.setup).engine
        return (await asyncio.to_thread(engine.added.get, timeout=TIMEOUT_S)).request_id


@asynccontextmanager
async def frontend() -> AsyncIterator[Frontend]:
    async with serving() as setup:
        frontend = Frontend(setup, Handle(await setup.supervisor()))
        frontend.source.start()
        await frontend.reported(1)
        yield frontend
        frontend.board.set_members({})


def test_a_request_on_its_way_to_a_replica_that_drains_is_answered_by_it() -> None:
    async def run() -> None:
        async with frontend() as this:
            this.handle.is_open.clear()
            answer = asyncio.create_task(this.answer("r"))
            await asyncio.sleep(0.05)
            this.board.set_members({})
            await asyncio.sleep(0.05)
            this.handle.is_open.set()
            attempt_id = await this.added()
            this.setup.engine.step(output(attempt_id, 0, FinishReason.STOP))
            async with asyncio.timeout(2):
                assert await answer == [1000]

    asyncio.run(run())


def test_tokens_do_not_wait_for_the_call() -> None:
    async def run() -> None:
        async with frontend() as this:
            this.handle.is_open.clear()
            answer = asyncio.create_task(this.answer("r"))
            attempt_id = await this.added()
            this.setup.engine.step(output(attempt_id, 0, FinishReason.STOP))
            assert await answer == [1000]
            # The call comes too late, and nothing runs twice.
            this.handle.is_open.set()
            await asyncio.gather(*this.handle.calls)
            assert this.setup.engine.added.empty()

    asyncio.run(run())


def test_a_call_that_serve_leads_nowhere_ends_some_time_after_its_request() -> None:
    async def run() -> None:
        async with frontend() as this:
            this.handle.is_open.clear()
            answer = asyncio.create_task(this.answer("r"))
            this.setup.engine.step(output(await this.added(), 0, FinishReason.STOP))
            await answer
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.wait(this.handle.calls)
            assert this.handle.calls[0].cancelled()

    with mock.patch.object(token_source, "CALL_TIMEOUT_S", 0.05):
        asyncio.run(run())


def test_the_call_brings_what_the_stream_did_not() -> None:
    async def run() -> None:
        async with frontend() as this:
            answer = asyncio.create_task(this.answer("r"))
            this.setup.engine.step(output(await this.added(), 0, FinishReason.STOP))
            assert await answer == [1000]

    with mock.patch.object(TokenClient, "submit"):
        asyncio.run(run())


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("is_accepted", [True, False])
def test_a_client_that_leaves_leaves_nothing(is_open: bool, is_accepted: bool) -> None:
    async def run() -> None:
        async with frontend() as this:
            engine = this.setup.engine
            if not is_open:
                this.handle.is_open.clear()
            answer = asyncio.create_task(this.answer("r"))
            assert await this.added() == "r.0"
            if is_accepted:
                engine.step(output("r.0", 0))
                await asyncio.sleep(0.05)
            assert this.board.num_requests == 1
            answer.cancel()
            await asyncio.wait({answer})
            assert this.board.num_requests == 0
            assert await this.setup.wait_aborted() == "r.0"
            assert engine.added.empty()

    asyncio.run(run())


def test_first_tokens_go_out_first_and_every_request_keeps_its_order() -> None:
    async def run() -> None:
        async with frontend() as this:
            seen: list[tuple[str, int]] = []

            async def follow(request_id: str) -> None:
                nonlocal seen
                async for each in this.source.generate(make_request(request_id), RequestTimes(0.0)):
                    seen += [(each.request_id, each.index)]

            old = asyncio.create_task(follow("old"))
            engine = this.setup.engine
            engine.step(output(await this.added(), 0))
            new = asyncio.create_task(follow("new"))
            await this.added()
            engine.step(output("old.0", 1), output("new.0", 0))
            engine.step(
                output("old.0", 2, FinishReason.STOP), output("new.0", 1, FinishReason.STOP)
            )
            await asyncio.gather(old, new)
            assert seen[:2] == [("old.0", 0), ("new.0", 0)]
            assert [index for name, index in seen if name == "old.0"] == [0, 1, 2]
            assert [index for name, index in seen if name == "new.0"] == [0, 1]

    asyncio.run(run())


def test_a_call_that_is_led_elsewhere_takes_along_a_request_without_tokens() -> None:
    async def run() -> None:
        async with frontend() as this, serving(FakeEngine("other")) as other:
            this.handle.is_open.clear()
            answer = asyncio.create_task(this.answer("r"))
            attempt_id = await this.added()
            this.setup.engine.step()
            await this.lead_elsewhere(attempt_id, other)
            assert await this.added(other) == attempt_id
            other.engine.step()
            assert await this.setup.wait_aborted() == attempt_id
            other.engine.step(output(attempt_id, 0), output(attempt_id, 1, FinishReason.STOP))
            assert await answer == [1000, 1001]

    asyncio.run(run())


@pytest.mark.parametrize("refuses", [True, False])
def test_a_call_that_is_led_elsewhere_does_not_harm_a_request_with_tokens(refuses: bool) -> None:
    async def run() -> None:
        async with frontend() as this, serving(FakeEngine("other")) as other:
            this.handle.is_open.clear()
            answer = asyncio.create_task(this.answer("r"))
            attempt_id = await this.added()
            this.setup.engine.step(output(attempt_id, 0))
            if refuses:
                other.engine.refusals[attempt_id] = Overloaded("Full.", "Wait.")
            await this.lead_elsewhere(attempt_id, other)
            if not refuses:
                assert await this.added(other) == attempt_id
                other.engine.step(output(attempt_id, 0))
                assert await other.wait_aborted() == attempt_id
            await asyncio.gather(*this.handle.calls)
            this.setup.engine.step(output(attempt_id, 1, FinishReason.STOP))
            assert await answer == [1000, 1001]

    asyncio.run(run())


def test_a_request_that_the_engine_has_no_room_for_is_placed_again() -> None:
    async def run() -> None:
        async with frontend() as this:
            this.setup.engine.refusals["r.0"] = Overloaded("7 requests wait.", "Wait.", 3.0)
            answer = asyncio.create_task(this.answer("r"))
            assert await this.added() == "r.1"
            this.setup.engine.step(output("r.1", 0, FinishReason.STOP))
            assert await answer == [1000]
            assert this.board.num_requests == 0
            for attempt in range(4):
                this.setup.engine.refusals[f"s.{attempt}"] = Overloaded("Full.", "Wait.", 3.0)
            with pytest.raises(Overloaded, match="Full") as refusal:
                await this.answer("s")
            assert refusal.value.retry_after_s == 3.0
            assert this.board.num_requests == 0

    asyncio.run(run())
