"""Requests whose replica is lost: they move, go on, or are held to be the cause."""

import asyncio
from unittest import mock

import pytest

from cluster import token_client
from cluster.journal import MAX_REFUSALS, MIN_PROGRESS, Poisonous
from engine.errors import Overloaded
from engine.output import FinishReason
from tests.cluster.token_fakes import TIMEOUT_S, make_request, output
from tests.deployments.failover_fakes import Answer, Replicas, replicas

STOP = FinishReason.STOP


async def placed(these: Replicas, attempt_id: str) -> str:
    """Wait until an attempt has its replica; return that."""
    async with asyncio.timeout(TIMEOUT_S):
        while (name := these.board.placement(attempt_id)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return name


def other(name: str) -> str:
    return {"a": "b", "b": "a"}[name]


async def check_nothing_left(these: Replicas) -> None:
    assert these.board.num_requests == 0
    assert not these.source._attempts
    assert not these.source._present


@pytest.mark.parametrize("num_tokens", [0, 1, 3])
def test_a_stream_goes_on_at_another_replica(num_tokens: int) -> None:
    async def run() -> None:
        async with replicas("a", "b") as these:
            answer = Answer(these.source, make_request("r"))
            first = await placed(these, "r.0")
            assert (await these.added(first)).emitted == []
            engine = these.setups[first].engine
            engine.step()
            for index in range(num_tokens):
                engine.step(output("r.0", index))
            await answer.wait(num_tokens)
            await these.kill(first)
            resumed = await these.added(other(first))
            assert resumed.request_id == "r.1"
            seen = [1000 + index for index in range(num_tokens)]
            assert resumed.emitted == ([seen] if seen else [])
            engine = these.setups[other(first)].engine
            # What the lost one would still say belongs to nobody.
            engine.step(output("r.1", num_tokens), output("r.1", num_tokens + 1, STOP))
            assert await answer.tokens() == [1000 + index for index in range(num_tokens + 2)]
            counts = these.source.admission()
            assert (counts.num_moved, counts.num_resumed) == (num_tokens == 0, num_tokens > 0)
            await check_nothing_left(these)

    asyncio.run(run())


def test_a_request_that_nobody_has_taken_moves() -> None:
    async def run() -> None:
        async with replicas("a", "b") as these:
            with mock.patch("cluster.token_client.TokenClient.submit"):
                these.generate = mock.Mock()
                these.generate.remote.return_value = asyncio.get_running_loop().create_future()
                answer = Answer(these.source, make_request("r"))
                first = await placed(these, "r.0")
            these.generate = these
            await these.kill(first)
            assert (await these.added(other(first))).request_id == "r.1"
            these.setups[other(first)].engine.step(output("r.1", 0, STOP))
            assert await answer.tokens() == [1000]

    asyncio.run(run())


def test_choices_go_on_each_from_where_it_was() -> None:
    async def run() -> None:
        async with replicas("a", "b") as these:
            answer = Answer(these.source, make_request("r", n=4))
            first = await placed(these, "r.0")
            await these.added(first)
            engine = these.setups[first].engine
            engine.step(output("r.0", 0), output("r.0", 0, STOP, 1), output("r.0", 0, None, 2))
            engine.step(output("r.0", 1), output("r.0", 1, None, 2))
            await answer.wait(5)
            await these.source.abort("r", 2)  # its text has ended with a stop string
            with mock.patch("cluster.token_hub.TokenRoutes.abort"):
                await these.kill(first)
            assert (await these.added(other(first))).emitted == [[1000, 1001], None, None, []]
            engine = these.setups[other(first)].engine
            engine.step(output("r.1", 2, STOP), output("r.1", 0, STOP, 3))
            assert await answer.tokens(0) == [1000, 1001, 1002]
            assert await answer.tokens(1) == [1000]
            assert await answer.tokens(2) == [1000, 1001]
            assert await answer.tokens(3) == [1000]
            await check_nothing_left(these)

    asyncio.run(run())


def test_a_silent_replica_is_lost_and_what_it_says_later_counts_for_nothing() -> None:
    async def run() -> None:
        async with replicas("a", "b") as these:
            answer = Answer(these.source, make_request("r"))
            first = await placed(these, "r.0")
            await these.added(first)
            zombie = these.setups[first].engine
            zombie.step(output("r.0", 0))
            await answer.wait(1)
            hub = these.setups[first].server._hub
            with mock.patch.object(hub, "beat"), mock.patch.object(hub, "_publish"):
                assert (await these.added(other(first))).emitted == [[1000]]
                zombie.step(output("r.0", 1))
            these.setups[other(first)].engine.step(output("r.1", 1, STOP))
            assert await answer.tokens() == [1000, 1001]
            # It was told so as soon as it listened again.
            assert await these.setups[first].wait_aborted() == "r.0"

    with mock.patch.object(token_client.TokenClient.__init__, "__kwdefaults__", FAST):
        asyncio.run(run())


FAST = {"reconnect_s": 0.2, "silence_s": 0.8}


def test_a_request_that_two_replicas_die_of_is_quarantined() -> None:
    async def run() -> None:
        async with replicas("a", "b") as these:
            answer = Answer(these.source, make_request("r"))
            first = await placed(these, "r.0")
            await these.added(first)
            these.setups[first].engine.step(output("r.0", 0))
            await answer.wait(1)
            await these.kill(first)
            await these.added(other(first))
            these.setups[other(first)].engine.step()
            await asyncio.sleep(0.2)
            await these.kill(other(first))
            with pytest.raises(Poisonous, match="2 replicas were lost"):
                await answer.tokens()
            await check_nothing_left(these)
            with pytest.raises(Poisonous, match="this very request"):
                await Answer(these.source, make_request("again")).tokens()
            assert these.source.admission().num_quarantined == 1

    asyncio.run(run())


def test_none_of_those_that_began_beside_a_poisonous_request_is_taken_for_it() -> None:
    async def work(these: Replicas, name: str) -> None:
        """An engine that dies of the poison, and takes its time for the others."""
        engine = these.setups[name].engine
        while True:
            request = await these.added(name)
            if request.request_id == "over":
                return
            engine.step()
            await asyncio.sleep(0.1)
            if len(request.prompt_token_ids) == 1:
                await these.kill(name)
                return
            engine.step(*(output(request.request_id, index) for index in range(MIN_PROGRESS)))
            engine.step(output(request.request_id, MIN_PROGRESS, STOP))

    async def run() -> None:
        async with replicas("a") as these:
            answers = [Answer(these.source, make_request(f"r{number}")) for number in range(3)]
            poison = Answer(these.source, make_request("p", num_prompt_tokens=1))
            answers += [Answer(these.source, make_request(f"r{number}")) for number in range(3, 6)]
            for _ in range(7):
                await these.added("a")
            these.setups["a"].engine.step()
            await these.add("b")
            await these.add("c")
            await asyncio.sleep(0.2)
            await these.kill("a")
            engines = [asyncio.create_task(work(these, name)) for name in ("b", "c")]
            with pytest.raises(Poisonous):
                await poison.tokens()
            for answer in answers:
                assert len(await answer.tokens()) == MIN_PROGRESS + 1
            assert sum(engine.done() for engine in engines) == 1
            for name in ("b", "c"):
                these.setups[name].engine.added.put(make_request("over"))
            await asyncio.gather(*engines)
            await check_nothing_left(these)

    asyncio.run(run())


def test_the_only_replica_comes_back_and_the_stream_goes_on() -> None:
    async def run() -> None:
        async with replicas("a") as these:
            answer = Answer(these.source, make_request("r"))
            await these.added("a")
            these.setups["a"].engine.step(output("r.0", 0))
            await answer.wait(1)
            await these.kill("a")
            await asyncio.sleep(0.1)
            these.tell_members("a")
            del these.setups["a"]
            await these.add("b")
            assert (await these.added("b")).emitted == [[1000]]
            these.setups["b"].engine.step(output("r.1", 1, STOP))
            assert await answer.tokens() == [1000, 1001]

    asyncio.run(run())


def test_a_stream_outlasts_full_engines() -> None:
    async def run() -> None:
        async with replicas("a", "b") as these:
            answer = Answer(these.source, make_request("r"))
            first = await placed(these, "r.0")
            await these.added(first)
            these.setups[first].engine.step(output("r.0", 0))
            await answer.wait(1)
            second = these.setups[other(first)].engine
            num_refusals = 2 * MAX_REFUSALS
            for number in range(1, num_refusals + 1):
                second.refusals[f"r.{number}"] = Overloaded("Full.", "Wait.")
            await these.kill(first)
            attempt_id = (await these.added(other(first))).request_id
            assert attempt_id == f"r.{num_refusals + 1}"
            second.step(output(attempt_id, 1, STOP))
            assert await answer.tokens() == [1000, 1001]

    asyncio.run(run())
