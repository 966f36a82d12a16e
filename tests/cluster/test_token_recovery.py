"""What becomes of tokens and requests when a stream breaks, stalls or goes away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from cluster.messages import Demand, Hello, Role
from cluster.token_hub import HubLimits, TokenHub
from engine.errors import ReplicaLost
from engine.output import FinishReason, TokenLogprob, TokenOutput
from tests.cluster.token_fakes import (
    TOKEN,
    FakeEngine,
    Relay,
    Setup,
    make_request,
    output,
    read_to_end,
    serving,
)

STOP = FinishReason.STOP


@asynccontextmanager
async def relay_to(setup: Setup) -> AsyncIterator[tuple[Relay, str]]:
    relay = Relay(setup.address)
    address = await relay.start()
    try:
        yield relay, address
    finally:
        await relay.close()


def test_reconnect_within_grace_delivers_every_output_once_and_in_order() -> None:
    async def run() -> None:
        async with serving() as setup, relay_to(setup) as (relay, address):
            received = await setup.frontend(address=address)
            task = await setup.submit(await setup.supervisor(), make_request("a"))
            for index in range(10):
                setup.engine.step(output("a", index))
            await received.wait_outputs(10)
            relay.hold()
            # The server sends these, and nobody gets them.
            for index in range(10, 20):
                setup.engine.step(output("a", index))
            await asyncio.to_thread(setup.engine.drain)
            relay.cut()
            for index in range(20, 30):
                setup.engine.step(output("a", index))
            setup.engine.step(output("a", 30, STOP))
            await task
            await received.wait_outputs(31)
            assert [each.index for each in received.outputs] == list(range(31))
            assert received.accepted == ["a"]
            assert received.lost == []

    asyncio.run(run())


def test_many_cuts_lose_nothing() -> None:
    async def run() -> None:
        async with serving() as setup, relay_to(setup) as (relay, address):
            received = await setup.frontend(address=address)
            await setup.submit(await setup.supervisor(), make_request("a"))
            for index in range(200):
                setup.engine.step(output("a", index))
                if index % 40 == 39:
                    await received.wait_outputs(index - 20)
                    relay.cut()
            await received.wait_outputs(200)
            assert [each.index for each in received.outputs] == list(range(200))
            assert received.lost == []

    asyncio.run(run())


def test_abort_that_a_break_swallowed_is_sent_again() -> None:
    async def run() -> None:
        async with serving() as setup, relay_to(setup) as (relay, address):
            received, client = setup.client(address=address)
            await received.wait(lambda: received.frames)
            await setup.submit(await setup.supervisor(), make_request("a"))
            relay.cut()
            client.abort("a")
            assert await setup.wait_aborted() == "a"
            await received.wait_outputs(1)
            assert received.outputs[0].finish_reason is FinishReason.ABORT

    asyncio.run(run())


async def arrives(setup: Setup, demand: Demand) -> None:
    for _ in range(500):
        if setup.server.demand() == demand:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"the engine knows of {setup.server.demand()}")


def test_demand_that_a_break_swallowed_is_told_again() -> None:
    async def run() -> None:
        async with serving() as setup, relay_to(setup) as (relay, address):
            received, client = setup.client(address=address)
            await received.wait(lambda: received.frames)
            client.tell(Demand(5, 100, 0.9))
            await arrives(setup, Demand(5, 100, 0.9))
            relay.hold()
            client.tell(Demand())
            relay.cut()
            await arrives(setup, Demand())

    asyncio.run(run())


def test_demand_that_comes_late_over_an_old_stream_does_not_count() -> None:
    async def run() -> None:
        engine = FakeEngine()
        hub = TokenHub(engine, asyncio.get_running_loop(), HubLimits())
        hello = Hello(TOKEN, "frontend", Role.FRONTEND)
        old, welcome = hub.connect(hello)
        new, _ = hub.connect(msgspec.structs.replace(hello, epoch=welcome.epoch))
        hub.receive(new, Demand())
        hub.receive(old, Demand(5, 100, 0.9))
        assert hub.demand() == Demand()
        engine.close()

    asyncio.run(run())


def test_frontend_that_does_not_come_back_has_its_requests_aborted() -> None:
    async def run() -> None:
        async with serving(grace_s=0.05) as setup:
            received, client = setup.client()
            await received.wait(lambda: received.frames)
            supervisor = await setup.supervisor()
            task = await setup.submit(supervisor, make_request("a", n=2))
            client.close()
            assert await setup.wait_aborted() == "a"
            await task
            with pytest.raises(ReplicaLost, match="no token stream"):
                await supervisor.submit("frontend", make_request("b"))

    asyncio.run(run())


def test_newest_client_of_a_name_keeps_it_and_the_old_one_stops() -> None:
    async def run() -> None:
        async with serving() as setup:
            first = await setup.frontend()
            await setup.submit(await setup.supervisor(), make_request("a"))
            second = await setup.frontend()
            assert await setup.wait_aborted() == "a"
            await first.wait(lambda: first.lost)
            assert "same name" in first.lost[0]
            await setup.submit(await setup.supervisor(), make_request("b"))
            setup.engine.step(output("b", 0))
            await second.wait_outputs(1)
            assert [each.request_id for each in second.outputs] == ["b"]
            assert second.lost == []

    asyncio.run(run())


def test_frontend_learns_at_once_that_the_engine_process_is_gone() -> None:
    async def run() -> None:
        async with serving() as setup:
            received = await setup.frontend()
            await setup.server.stop()
            await received.wait(lambda: received.lost)
            assert len(received.lost) == 1

    asyncio.run(run())


def test_frontend_learns_of_a_new_engine_process_and_goes_on_with_it() -> None:
    async def run() -> None:
        async with (
            serving(FakeEngine("first")) as old,
            serving(FakeEngine("second")) as new,
            relay_to(old) as (relay, address),
        ):
            received = await old.frontend(address=address)
            await old.submit(await old.supervisor(), make_request("a"))
            old.engine.step(output("a", 0))
            await received.wait_outputs(1)
            relay.target = new.address
            relay.cut()
            await received.wait(lambda: received.lost)
            await received.wait(lambda: received.frames[-1].snapshot.epoch == "second")
            await new.submit(await new.supervisor(), make_request("b"))
            new.engine.step(output("b", 0))
            await received.wait_outputs(2)
            assert len(received.lost) == 1

    asyncio.run(run())


def test_frontend_without_an_answer_for_the_grace_period_gives_its_requests_up() -> None:
    async def run() -> None:
        async with serving() as setup, relay_to(setup) as (relay, address):
            received = await setup.frontend(address=address, reconnect_s=0.1)
            relay.target = "127.0.0.1:1"  # connections open and close again: not refused
            relay.cut()
            await received.wait(lambda: received.lost)

    asyncio.run(run())


def test_lost_supervisor_has_its_requests_aborted_and_frontends_hear_nothing_of_it() -> None:
    async def run() -> None:
        async with serving() as setup:
            received = await setup.frontend()
            lost, other = await setup.supervisor(), await setup.supervisor()
            task = await setup.submit(lost, make_request("a"))
            await setup.submit(other, make_request("b"))
            await lost.close()
            with pytest.raises(ReplicaLost):
                await task
            assert await setup.wait_aborted() == "a"
            setup.engine.step(output("b", 0))
            await received.wait_outputs(1)
            assert [each.request_id for each in received.outputs] == ["b"]

    asyncio.run(run())


def test_frontend_that_does_not_read_is_dropped_and_stalls_nobody() -> None:
    async def run() -> None:
        async with serving(max_unread_bytes=2**20) as setup:
            received = await setup.frontend()
            supervisor = await setup.supervisor()
            slow = await setup.raw(Hello(TOKEN, "slow", Role.FRONTEND))
            await slow.read()
            slow_task = await setup.submit(supervisor, make_request("slow"), "slow")
            task = await setup.submit(supervisor, make_request("a"))
            top = [(token_id, -1.0) for token_id in range(20)]
            logprobs = [TokenLogprob(0, -1.0, top)] * 100
            for index in range(100):
                large = TokenOutput("slow", 0, 100 * index, [0] * 100, logprobs)
                setup.engine.step(large, output("a", index))
            assert await setup.wait_aborted() == "slow"
            await slow_task
            setup.engine.step(output("a", 100, STOP))
            await task
            await received.wait_outputs(101)
            assert "does not read" in ((await read_to_end(slow)).details() or "")

    asyncio.run(run())


def test_frontend_that_reads_is_never_dropped_however_much_it_gets() -> None:
    async def run() -> None:
        async with serving(max_unread_bytes=200_000) as setup:
            received = await setup.frontend()
            await setup.submit(await setup.supervisor(), make_request("a"))
            for index in range(50):
                large = TokenOutput("a", 0, 2000 * index, [70_000] * 2000)
                setup.engine.step(large)
                await received.wait_outputs(index + 1)
            assert received.lost == []

    asyncio.run(run())
