"""The frontend's token source over a real token stream, with a Serve handle of our own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from cluster.admission import Admission
from cluster.admission_limits import AdmissionLimits
from cluster.board import Board
from cluster.messages import WireError
from cluster.token_client import SubmitClient
from deployments.token_source import ServeTokenSource
from engine.errors import Overloaded, PageRayError
from engine.output import FinishReason
from engine.request import GenerateRequest
from tests.cluster.token_fakes import TIMEOUT_S, TOKEN, Setup, make_request, output, serving


class Handle:
    """Stands for Serve's handle of one replica: each call reaches it once the way is open."""

    def __init__(self, supervisor: SubmitClient) -> None:
        self._supervisor = supervisor
        self.generate = self
        self.is_open = asyncio.Event()
        self.is_open.set()

    def remote(self, frontend_id: str, request: GenerateRequest) -> "asyncio.Task[Any]":
        return asyncio.create_task(self._generate(frontend_id, request))

    async def _generate(self, frontend_id: str, request: GenerateRequest) -> WireError | None:
        await self.is_open.wait()
        try:
            await self._supervisor.submit(frontend_id, request)
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

    def join(self) -> None:
        self.board.set_members({"a": {"address": self.setup.address, "token": TOKEN}})

    async def answer(self, request_id: str) -> list[int]:
        """Run a request to its end; return its tokens."""
        tokens: list[int] = []
        async with aclosing(self.source.generate(make_request(request_id))) as outputs:
            async for each in outputs:
                tokens += each.token_ids
        return tokens

    async def added(self) -> str:
        """Return the attempt that the engine was given next."""
        added = await asyncio.to_thread(self.setup.engine.added.get, timeout=TIMEOUT_S)
        return added.request_id


@asynccontextmanager
async def frontend() -> AsyncIterator[Frontend]:
    async with serving() as setup:
        frontend = Frontend(setup, Handle(await setup.supervisor()))
        frontend.source.start()
        while not frontend.source.snapshots():  # noqa: ASYNC110  the board tells nobody
            await asyncio.sleep(0.01)
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


def test_a_client_that_leaves_on_its_way_or_at_work_leaves_nothing() -> None:
    async def run() -> None:
        async with frontend() as this:
            engine = this.setup.engine
            for is_open in (False, True):
                if is_open:
                    this.handle.is_open.set()
                else:
                    this.handle.is_open.clear()
                answer = asyncio.create_task(this.answer(f"r{is_open}"))
                if is_open:
                    engine.step(output(await this.added(), 0))
                await asyncio.sleep(0.05)
                assert this.board.num_requests == 1
                answer.cancel()
                await asyncio.wait({answer})
                assert this.board.num_requests == 0
            assert await this.setup.wait_aborted() == "rTrue.0"
            assert engine.added.empty()

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
