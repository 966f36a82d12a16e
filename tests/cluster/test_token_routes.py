"""A request that its frontend and a supervisor both submit: it runs once, whoever comes first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from queue import Empty
from typing import Any

import pytest

from cluster.messages import (
    Abort,
    Ended,
    Frame,
    Hello,
    InvalidMessage,
    Refused,
    Role,
    ServerMessage,
    Submit,
    decode_server_message,
)
from cluster.token_hub import HubLimits, TokenHub
from cluster.token_peer import MAX_ENDED, Connection
from engine.errors import Overloaded
from engine.output import FinishReason
from tests.cluster.token_fakes import TIMEOUT_S, TOKEN, FakeEngine, make_request, output

STOP = FinishReason.STOP
FRONTEND = Hello(TOKEN, "frontend", Role.FRONTEND)


class Bench:
    """A hub with a frontend and a supervisor, and no sockets."""

    def __init__(self, engine: FakeEngine, limits: HubLimits) -> None:
        self.engine = engine
        self.hub = TokenHub(engine, asyncio.get_running_loop(), limits)
        engine.on_step = self.hub.on_step
        self.frontend = self.hub.connect(FRONTEND)[0]
        self.supervisor = self.hub.connect(Hello(TOKEN, "supervisor", Role.REPLICA))[0]

    def submit(self, connection: Connection, request_id: str = "a") -> None:
        self.hub.receive(connection, Submit("frontend", make_request(request_id)))

    async def settle(self) -> None:
        """Let the engine do what it was told, and the hub hear of it."""
        await asyncio.to_thread(self.engine.drain)
        await asyncio.sleep(0)

    async def end(self, request_id: str = "a") -> None:
        self.engine.step(output(request_id, 0, STOP))
        await self.settle()

    async def wait_aborted(self) -> str:
        return await asyncio.to_thread(self.engine.aborted.get, timeout=TIMEOUT_S)

    def added(self) -> list[str]:
        """What the engine was given since the last time."""
        ids: list[str] = []
        while True:
            try:
                ids.append(self.engine.added.get_nowait().request_id)
            except Empty:
                return ids

    async def heard(self, connection: Connection) -> list[ServerMessage]:
        """What it was sent since the last time, without heartbeats."""
        outbox = connection.outbox
        num_unsent = outbox.last_number - outbox.last_sent
        return [decode_server_message(await outbox.get()) for _ in range(num_unsent)]

    async def refusals(self) -> list[str]:
        """Kinds of the errors that the supervisor was sent since the last time, and no more."""
        messages = await self.heard(self.supervisor)
        return [each.error.kind for each in messages if isinstance(each, Refused)]


@asynccontextmanager
async def bench(**limits: Any) -> AsyncIterator[Bench]:
    engine = FakeEngine()
    try:
        yield Bench(engine, HubLimits(**limits))
    finally:
        engine.close()


@pytest.mark.parametrize("direct_first", [True, False])
def test_a_request_runs_once_and_both_hear_of_it(direct_first: bool) -> None:
    async def run() -> None:
        async with bench() as this:
            pair = [this.frontend, this.supervisor]
            for connection in pair if direct_first else reversed(pair):
                this.submit(connection)
                await this.settle()
            await this.end()
            assert this.added() == ["a"]
            (frame,) = await this.heard(this.frontend)
            assert isinstance(frame, Frame)
            assert (frame.accepted, len(frame.outputs)) == (["a"], 1)
            assert await this.heard(this.supervisor) == [Ended(["a"])]

    asyncio.run(run())


@pytest.mark.parametrize("direct_first", [True, False])
def test_a_request_that_ended_before_the_other_came_does_not_run_again(direct_first: bool) -> None:
    async def run() -> None:
        async with bench() as this:
            pair = [this.frontend, this.supervisor]
            first, second = pair if direct_first else reversed(pair)
            this.submit(first)
            await this.settle()
            await this.end()
            this.submit(second)
            await this.settle()
            assert this.added() == ["a"]
            assert await this.heard(this.supervisor) == [Ended(["a"])]
            assert len(await this.heard(this.frontend)) == 1
            # Both have had it: the id is free again.
            this.submit(second)
            await this.settle()
            assert this.added() == ["a"]

    asyncio.run(run())


@pytest.mark.parametrize("swallowed", [True, False])
def test_an_aborted_request_is_not_started_by_a_supervisor_that_comes_later(
    swallowed: bool,
) -> None:
    async def run() -> None:
        async with bench() as this:
            if not swallowed:
                this.submit(this.frontend)
            this.hub.receive(this.frontend, Abort("a"))
            await this.settle()
            this.submit(this.supervisor)
            await this.settle()
            assert this.added() == ([] if swallowed else ["a"])
            assert await this.heard(this.supervisor) == [Ended(["a"])]

    asyncio.run(run())


def test_aborting_a_choice_of_an_unknown_request_says_nothing_of_the_request() -> None:
    async def run() -> None:
        async with bench() as this:
            this.hub.receive(this.frontend, Abort("a", 0))
            this.submit(this.supervisor)
            await this.settle()
            assert this.added() == ["a"]

    asyncio.run(run())


def test_a_direct_submission_that_is_refused_leaves_the_answer_to_the_supervisors() -> None:
    async def run() -> None:
        async with bench() as this:
            for again in (True, False):
                this.engine.refusals["a"] = Overloaded("Full.", "Wait.")
                this.submit(this.frontend)
                await this.settle()
                assert await this.heard(this.frontend) == []
                if not again:
                    this.engine.refusals.clear()
                this.submit(this.supervisor)
                await this.settle()
                assert await this.refusals() == (["Overloaded"] if again else [])
            assert this.added() == ["a"]

    asyncio.run(run())


@pytest.mark.parametrize("direct_first", [True, False])
def test_a_refusal_is_told_once_and_the_request_is_not_tried_again(direct_first: bool) -> None:
    async def run() -> None:
        async with bench() as this:
            this.engine.refusals["a"] = Overloaded("Full.", "Wait.")
            if direct_first:
                this.submit(this.frontend)  # and the other comes before the engine has answered
            this.submit(this.supervisor)
            await this.settle()
            this.engine.refusals.clear()
            if not direct_first:
                this.submit(this.frontend)
                await this.settle()
            assert await this.refusals() == ["Overloaded"]
            assert this.added() == []

    asyncio.run(run())


def test_the_same_submission_twice_is_refused() -> None:
    async def run() -> None:
        async with bench() as this:
            for connection in (this.frontend, this.supervisor):
                this.submit(connection)
                this.submit(connection)
            await this.settle()
            assert await this.refusals() == ["InvalidRequest"]
            assert await this.heard(this.frontend) == []
            assert this.added() == ["a"]
            other = this.hub.connect(Hello(TOKEN, "other", Role.FRONTEND))[0]
            this.hub.receive(other, Submit("other", make_request("a")))
            await this.settle()
            assert this.added() == []

    asyncio.run(run())


def test_a_frontend_submits_for_itself_only_and_on_its_newest_stream() -> None:
    async def run() -> None:
        async with bench() as this:
            with pytest.raises(InvalidMessage, match="Submit"):
                this.hub.receive(this.frontend, Submit("supervisor", make_request("a")))
            newer = this.hub.connect(FRONTEND)[0]
            this.submit(this.frontend, "old")
            this.submit(newer, "new")
            await this.settle()
            assert this.added() == ["new"]

    asyncio.run(run())


def test_a_frontend_that_is_gone_takes_along_what_only_it_has_submitted() -> None:
    async def run() -> None:
        async with bench(grace_s=0.0) as this:
            this.submit(this.frontend)
            await this.settle()
            this.hub.disconnect(this.frontend)
            assert await this.wait_aborted() == "a"
            this.submit(this.supervisor)
            assert await this.refusals() == ["ReplicaLost"]

    asyncio.run(run())


def test_a_frontend_that_starts_afresh_gets_a_request_again_once_the_old_one_has_ended() -> None:
    async def run() -> None:
        async with bench() as this:
            this.submit(this.frontend)
            await this.settle()
            this.hub.connect(FRONTEND)
            this.submit(this.supervisor)
            assert await this.refusals() == ["ReplicaLost"]
            await this.settle()
            assert this.engine.aborted.get_nowait() == "a"
            # Nobody has seen anything of it.
            this.submit(this.supervisor)
            await this.settle()
            assert this.added() == ["a", "a"]

    asyncio.run(run())


def test_a_supervisor_that_is_gone_takes_along_what_it_has_submitted() -> None:
    async def run() -> None:
        async with bench() as this:
            for request_id in ("joined", "alone"):
                this.submit(this.frontend, request_id)
            this.submit(this.supervisor, "joined")
            await this.settle()
            this.hub.disconnect(this.supervisor)
            await this.settle()
            assert this.engine.aborted.get_nowait() == "joined"
            assert this.engine.aborted.empty()
            await this.end("alone")
            outputs = [
                each.request_id
                for frame in await this.heard(this.frontend)
                if isinstance(frame, Frame)
                for each in frame.outputs
            ]
            assert outputs == ["alone"]

    asyncio.run(run())


def test_what_has_ended_is_remembered_within_bounds() -> None:
    async def run() -> None:
        async with bench() as this:
            for i in range(MAX_ENDED + 1):
                this.hub.receive(this.frontend, Abort(str(i)))
            for i in (0, 1, MAX_ENDED):
                this.submit(this.supervisor, str(i))
            await this.settle()
            assert this.added() == ["0"]
            assert await this.heard(this.supervisor) == [Ended(["1"]), Ended([str(MAX_ENDED)])]

    asyncio.run(run())
