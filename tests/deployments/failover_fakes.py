"""Replicas that can die under a real token source."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from cluster.admission import Admission
from cluster.admission_limits import AdmissionLimits
from cluster.board import Board
from cluster.messages import WireError
from cluster.request_times import RequestTimes
from cluster.submit_client import SubmitClient
from deployments.token_source import ServeTokenSource
from engine.errors import PageRayError
from engine.output import TokenOutput
from engine.request import GenerateRequest
from tests.cluster.token_fakes import TIMEOUT_S, TOKEN, FakeEngine, Setup, serving


class Replicas:
    """Fake engines behind real token servers, and the Serve handle that leads to them."""

    def __init__(self) -> None:
        self.setups: dict[str, Setup] = {}
        self.board = Board()
        admission = Admission(
            self.board, AdmissionLimits(), model_name="m", block_size=16, ttft_objective_s=1.0
        )
        self.source = ServeTokenSource(self, self.board, admission, "frontend")  # type: ignore[arg-type]
        self.generate = self
        self.describe = self
        """Serve's handle looks like this."""
        self._supervisors: dict[str, SubmitClient] = {}
        self._stack = AsyncExitStack()

    async def add(self, name: str) -> Setup:
        """Bring up one more, and wait until the source has heard of it."""
        setup = await self._stack.enter_async_context(serving(FakeEngine(name)))
        self.setups[name] = setup
        self._supervisors[name] = await setup.supervisor()
        self.tell_members()
        async with asyncio.timeout(TIMEOUT_S):
            while not self._is_reported(name):  # noqa: ASYNC110  the board tells nobody
                await asyncio.sleep(0.01)
        return setup

    def tell_members(self, *left_out: str) -> None:
        """Let the board hear from Serve who is there."""
        self.board.set_members(
            {
                name: {"address": setup.address, "token": TOKEN}
                for name, setup in self.setups.items()
                if name not in left_out
            }
        )

    async def kill(self, name: str) -> None:
        """End a replica: its streams break, its port closes, its calls fail."""
        await self.setups[name].server.stop()

    async def added(self, name: str) -> GenerateRequest:
        """What the engine was given next."""
        engine = self.setups[name].engine
        return await asyncio.to_thread(engine.added.get, timeout=TIMEOUT_S)

    def remote(self, *arguments: Any) -> "asyncio.Task[Any]":
        """Serve's unary call; without arguments, one that waits for a replica to come up."""
        return asyncio.create_task(self._generate(*arguments) if arguments else asyncio.sleep(9))

    async def close(self) -> None:
        """End them all."""
        self.board.set_members({})
        await self._stack.aclose()

    def _is_reported(self, name: str) -> bool:
        return any(each.replica_id == name for each in self.source.snapshots())

    async def _generate(self, frontend_id: str, request: GenerateRequest) -> WireError | None:
        placed_on = self.board.placement(request.request_id)
        try:
            await self._supervisors[placed_on or ""].submit(frontend_id, request)
        except PageRayError as error:
            return WireError.from_error(error)
        return None


class Answer:
    """A client that reads a request to its end."""

    def __init__(self, source: ServeTokenSource, request: GenerateRequest) -> None:
        self.outputs: list[TokenOutput] = []
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._read(source, request))

    async def wait(self, num_outputs: int) -> None:
        """Wait until so many outputs have come."""
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.outputs) < num_outputs:
                self._changed.clear()
                await self._changed.wait()

    async def tokens(self, choice_index: int = 0) -> list[int]:
        """Wait for the end; return the tokens of a choice."""
        async with asyncio.timeout(TIMEOUT_S):
            await self.task
        outputs = [each for each in self.outputs if each.choice_index == choice_index]
        assert [each.finish_reason is not None for each in outputs].index(True) == len(outputs) - 1
        return [token_id for each in outputs for token_id in each.token_ids]

    async def _read(self, source: ServeTokenSource, request: GenerateRequest) -> None:
        async with aclosing(source.generate(request, RequestTimes(0.0))) as outputs:
            async for each in outputs:
                self.outputs.append(each)
                self._changed.set()


@asynccontextmanager
async def replicas(*names: str) -> AsyncIterator[Replicas]:
    """So many of them, with a token source."""
    these = Replicas()
    these.source.start()
    try:
        for name in names:
            await these.add(name)
        yield these
    finally:
        await these.close()
