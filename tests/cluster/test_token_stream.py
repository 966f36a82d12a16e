"""Token server and clients over real gRPC on the loopback."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from cluster.messages import Abort, Ack, Demand, Hello, Role, Submit, Welcome, decode_server_message
from cluster.submit_client import SubmitClient
from cluster.token_stream import StreamRefused
from engine.errors import InvalidRequest, Overloaded, PageRayError, PromptTooLong, ReplicaLost
from engine.output import FinishReason
from tests.cluster.token_fakes import (
    HOST,
    TIMEOUT_S,
    TOKEN,
    FakeEngine,
    Relay,
    make_request,
    output,
    read_to_end,
    serving,
)

STOP = FinishReason.STOP


def test_tokens_arrive_in_order_one_frame_per_step_and_the_submission_ends_last() -> None:
    async def run() -> None:
        async with serving() as setup:
            received = await setup.frontend()
            supervisor = await setup.supervisor()
            tasks = [await setup.submit(supervisor, make_request(name)) for name in ("a", "b")]
            for index in range(5):
                setup.engine.step(output("a", index), output("b", index))
            setup.engine.step(output("a", 5, STOP), output("b", 5, STOP))
            await asyncio.gather(*tasks)
            await received.wait_outputs(12)
            frames = [frame for frame in received.frames if frame.outputs]
            assert [frame.number for frame in frames] == [1, 2, 3, 4, 5, 6]
            for index, frame in enumerate(frames):
                assert [(o.request_id, o.index) for o in frame.outputs] == [
                    ("a", index),
                    ("b", index),
                ]
            assert received.accepted == ["a", "b"]
            assert received.lost == []

    asyncio.run(run())


def test_acceptance_comes_with_a_snapshot_that_covers_the_request() -> None:
    async def run() -> None:
        # Heartbeats all the time: none of them may carry the acceptance.
        async with serving(heartbeat_s=0.001) as setup:
            received = await setup.frontend()
            await setup.submit(await setup.supervisor(), make_request("a"))
            sequence_at_admission = setup.engine.snapshot().sequence
            num_frames = len(received.frames)
            await received.wait(lambda: len(received.frames) > num_frames + 3)
            assert received.accepted == []
            setup.engine.step()
            await received.wait(lambda: received.accepted == ["a"])
            frame = next(frame for frame in received.frames if frame.accepted)
            assert frame.snapshot.sequence > sequence_at_admission

    asyncio.run(run())


def test_each_frontend_gets_its_own_requests_only() -> None:
    async def run() -> None:
        async with serving() as setup:
            first = await setup.frontend("first")
            second = await setup.frontend("second")
            supervisor = await setup.supervisor()
            await setup.submit(supervisor, make_request("a"), "first")
            await setup.submit(supervisor, make_request("b"), "second")
            setup.engine.step(output("a", 0), output("b", 0), output("a", 1))
            await first.wait_outputs(1)
            await second.wait_outputs(1)
            assert [o.request_id for o in first.outputs] == ["a", "a"]
            assert [o.request_id for o in second.outputs] == ["b"]

    asyncio.run(run())


def test_submission_ends_when_every_choice_has_ended() -> None:
    async def run() -> None:
        async with serving() as setup:
            received = await setup.frontend()
            supervisor = await setup.supervisor()
            task = await setup.submit(supervisor, make_request("a", n=2))
            setup.engine.step(output("a", 0, STOP, choice_index=1))
            await received.wait_outputs(1)
            assert not task.done()
            setup.engine.step(output("a", 0, STOP, choice_index=0))
            await task

    asyncio.run(run())


def test_frontend_can_abort_one_choice() -> None:
    async def run() -> None:
        async with serving() as setup:
            received, client = setup.client()
            await received.wait(lambda: received.frames)
            await setup.submit(await setup.supervisor(), make_request("a", n=2))
            client.abort("a", 1)
            await received.wait_outputs(1)
            aborted = received.outputs[0]
            assert (aborted.choice_index, aborted.finish_reason) == (1, FinishReason.ABORT)
            client.abort("unknown")  # it may have ended a moment ago
            setup.engine.step(output("a", 0, STOP))
            await received.wait_outputs(2)

    asyncio.run(run())


def test_cancelled_submission_aborts_the_request() -> None:
    async def run() -> None:
        async with serving() as setup:
            await setup.frontend()
            task = await setup.submit(await setup.supervisor(), make_request("a"))
            task.cancel()
            assert await setup.wait_aborted() == "a"
            await asyncio.wait({task})
            assert task.cancelled()

    asyncio.run(run())


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("Cause.", "Fix.", "prompt", "some_code"),
        PromptTooLong("Cause.", "Fix."),
        Overloaded("Cause.", "Fix.", 7.5),
        ReplicaLost("Cause.", "Fix."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_refusal_arrives_as_the_error_that_the_engine_raised(error: PageRayError) -> None:
    async def run() -> None:
        async with serving() as setup:
            await setup.frontend()
            supervisor = await setup.supervisor()
            setup.engine.refusals["a"] = error
            with pytest.raises(type(error)) as caught:
                await supervisor.submit("frontend", make_request("a"))
            assert type(caught.value) is type(error)
            assert caught.value.args == error.args
            # A refused id is free again.
            setup.engine.refusals.clear()
            await setup.submit(supervisor, make_request("a"))

    asyncio.run(run())


def test_unforeseen_error_of_the_engine_keeps_its_text_to_itself() -> None:
    async def run() -> None:
        async with serving() as setup:
            await setup.frontend()
            supervisor = await setup.supervisor()
            setup.engine.refusals["a"] = ValueError("secret at 0x7f00")
            with pytest.raises(PageRayError, match="ValueError") as caught:
                await supervisor.submit("frontend", make_request("a"))
            assert "secret" not in str(caught.value)

    asyncio.run(run())


def test_request_for_a_frontend_without_a_stream_is_refused_for_another_placement() -> None:
    async def run() -> None:
        async with serving() as setup:
            supervisor = await setup.supervisor()
            with pytest.raises(ReplicaLost, match="no token stream"):
                await supervisor.submit("nobody", make_request("a"))

    asyncio.run(run())


def test_request_id_in_use_is_refused_by_client_and_server() -> None:
    async def run() -> None:
        async with serving() as setup:
            await setup.frontend()
            first, second = await setup.supervisor(), await setup.supervisor()
            await setup.submit(first, make_request("a"))
            for supervisor in (first, second):
                with pytest.raises(InvalidRequest, match="in use"):
                    await supervisor.submit("frontend", make_request("a"))

    asyncio.run(run())


def test_heartbeats_tell_of_an_engine_that_hangs() -> None:
    async def run() -> None:
        async with serving(heartbeat_s=0.01) as setup:
            received = await setup.frontend()
            setup.engine.step_age_s = 4.5
            await received.wait(lambda: received.frames[-1].snapshot.step_age_s == 4.5)

    asyncio.run(run())


def test_wrong_token_is_refused_to_every_client() -> None:
    async def run() -> None:
        async with serving() as setup:
            received, _ = setup.client(token="wrong token")
            await received.wait(lambda: received.lost)
            assert "wrong token" in received.lost[0]
            assert received.frames == []
            with pytest.raises(StreamRefused, match="wrong token"):
                await SubmitClient(setup.address, token="", peer_id="s").connect()

    asyncio.run(run())


def test_client_that_cannot_reach_the_server_says_so() -> None:
    async def run() -> None:
        relay = Relay("nowhere")
        address = await relay.start()
        await relay.close()
        with pytest.raises(ReplicaLost, match="broke"):
            await SubmitClient(address, token=TOKEN, peer_id="s").connect()

    asyncio.run(run())


@pytest.mark.parametrize("role", list(Role))
def test_garbage_closes_its_own_stream_and_no_other(role: Role) -> None:
    async def run() -> None:
        async with serving() as setup:
            received = await setup.frontend()
            supervisor = await setup.supervisor()
            task = await setup.submit(supervisor, make_request("a"))
            before_hello = await setup.raw()
            await before_hello.write(b"\xc1 garbage")
            end = await read_to_end(before_hello)
            assert end.code() is grpc.StatusCode.INVALID_ARGUMENT
            after_hello = await setup.raw(Hello(TOKEN, "other", role))
            await after_hello.write(b"\x91" * 100_000)
            end = await read_to_end(after_hello)
            assert end.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "not valid" in (end.details() or "")
            setup.engine.step(output("a", 0, STOP))
            await task
            await received.wait_outputs(1)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (Role.FRONTEND, Submit("frontend", make_request("b"))),
        (Role.FRONTEND, Hello(TOKEN, "other", Role.FRONTEND)),
        (Role.FRONTEND, Ack(3)),
        (Role.REPLICA, Ack(0)),
        (Role.REPLICA, Demand(1)),
    ],
)
def test_message_that_a_client_has_no_right_to_closes_its_stream(
    role: Role, message: Ack | Demand | Hello | Submit
) -> None:
    async def run() -> None:
        async with serving() as setup:
            await setup.frontend()
            task = await setup.submit(await setup.supervisor(), make_request("a"))
            call = await setup.raw(Hello(TOKEN, "other", role), message)
            assert (await read_to_end(call)).code() is grpc.StatusCode.INVALID_ARGUMENT
            setup.engine.step(output("a", 0, STOP))
            await task

    asyncio.run(run())


def test_what_frontends_hold_back_adds_up_until_they_leave() -> None:
    async def run() -> None:
        async with serving() as setup:
            clients = [setup.client(name) for name in ("one", "two")]
            for received, _ in clients:
                await received.wait(lambda received=received: received.frames)  # type: ignore[misc]
            assert setup.server.demand() == Demand()
            clients[0][1].tell(Demand(2, 100, 0.9))
            clients[1][1].tell(Demand(3, 50, 0.5))
            for _ in range(500):
                if setup.server.demand().num_held_requests == 5:
                    break
                await asyncio.sleep(0.01)
            assert setup.server.demand() == Demand(5, 150, 0.5)

    asyncio.run(run())


def test_nobody_aborts_the_request_of_another_client() -> None:
    async def run() -> None:
        async with serving() as setup:
            received = await setup.frontend()
            task = await setup.submit(await setup.supervisor(), make_request("a"))
            for role in Role:
                # The server has read the abort once it answers the garbage after it.
                call = await setup.raw(Hello(TOKEN, "other", role), Abort("a"))
                await call.write(b"garbage")
                await read_to_end(call)
            setup.engine.step(output("a", 0, STOP))
            await task
            assert setup.engine.aborted.empty()
            await received.wait_outputs(1)
            assert received.outputs[0].finish_reason is STOP

    asyncio.run(run())


def test_request_that_cannot_be_encoded_is_refused_alone() -> None:
    async def run() -> None:
        async with serving() as setup:
            await setup.frontend()
            supervisor = await setup.supervisor()
            request = make_request("a")
            for bad in (
                replace(request, prompt_token_ids=[2**70]),
                replace(request, cache_salt="\ud800"),
            ):
                with pytest.raises(InvalidRequest, match="cannot be sent"):
                    await supervisor.submit("frontend", bad)
            await setup.submit(supervisor, request)

    asyncio.run(run())


def test_server_stop_ends_submissions_with_replica_lost() -> None:
    async def run() -> None:
        async with serving(FakeEngine()) as setup:
            await setup.frontend()
            supervisor = await setup.supervisor()
            task = await setup.submit(supervisor, make_request("a"))
            await setup.server.stop()
            with pytest.raises(ReplicaLost):
                await task
            assert "broke" in await supervisor.wait_lost()
            with pytest.raises(ReplicaLost):
                await supervisor.submit("frontend", make_request("b"))

    asyncio.run(run())


def test_server_listens_on_the_given_host_only() -> None:
    async def run() -> None:
        async with serving() as setup:
            host, port = setup.address.split(":")
            assert host == HOST
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.2", int(port))
            call = await setup.raw(Hello(TOKEN, "other", Role.REPLICA))
            assert decode_server_message(await call.read()) == Welcome("first", resumed=False)

    asyncio.run(run())


def test_a_frontend_submits_by_itself_while_its_stream_is_open() -> None:
    async def run() -> None:
        async with serving() as setup:
            received, client = setup.client()
            client.submit(make_request("before"))
            await received.wait(lambda: received.frames)
            with pytest.raises(InvalidRequest, match="cannot be sent"):
                client.submit(replace(make_request("a"), prompt_token_ids=[2**70]))
            client.submit(make_request("a"))
            supervisor = await setup.supervisor()
            task = asyncio.create_task(supervisor.submit("frontend", make_request("a")))
            assert await asyncio.to_thread(setup.engine.added.get, timeout=TIMEOUT_S) == (
                make_request("a")
            )
            setup.engine.step(output("a", 0, STOP))
            await task
            await received.wait_outputs(1)
            assert setup.engine.added.empty()

    asyncio.run(run())
