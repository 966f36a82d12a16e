"""Trials: one at a time, and none holds up the next one for long once an engine has it."""

import asyncio
from unittest import mock

from deployments import trial
from deployments.attempt import Attempt
from deployments.trial import Trials

TIMEOUT_S = 10.0


def test_the_next_begins_when_one_ends_and_ending_twice_lets_no_two_in() -> None:
    async def run() -> None:
        trials = Trials()
        first = await trials.begin(Attempt("a"))
        second, third = (asyncio.create_task(trials.begin(Attempt(name))) for name in "bc")
        await asyncio.sleep(0.05)
        assert not second.done()
        first.end()
        first.end()
        async with asyncio.timeout(TIMEOUT_S):
            (await second).end()
            (await third).end()

    asyncio.run(run())


def test_who_leaves_while_it_waits_leaves_its_place() -> None:
    async def run() -> None:
        trials = Trials()
        first = await trials.begin(Attempt("a"))
        second, third = (asyncio.create_task(trials.begin(Attempt(name))) for name in "bc")
        await asyncio.sleep(0)
        second.cancel()
        first.end()
        async with asyncio.timeout(TIMEOUT_S):
            await third

    asyncio.run(run())


def test_the_next_waits_for_long_only_while_no_engine_has_the_first() -> None:
    async def run() -> None:
        trials, attempt = Trials(), Attempt("a")
        await trials.begin(attempt)
        second = asyncio.create_task(trials.begin(Attempt("b")))
        await asyncio.sleep(0.3)
        assert not second.done()
        attempt.accept("replica")
        async with asyncio.timeout(TIMEOUT_S):
            await second

    with mock.patch.object(trial, "TRIAL_S", 0.05):
        asyncio.run(run())
