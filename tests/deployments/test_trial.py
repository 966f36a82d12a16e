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
        first = await trials.begin(Attempt("a"), is_suspect=True)
        second, third = (
            asyncio.create_task(trials.begin(Attempt(name), is_suspect=True)) for name in "bc"
        )
        await asyncio.sleep(0.05)
        assert not second.done()
        first.end()
        first.end()
        async with asyncio.timeout(TIMEOUT_S):
            (await second).end()
            (await third).end()

    asyncio.run(run())


def test_who_is_no_suspect_waits_for_nobody() -> None:
    async def run() -> None:
        trials = Trials()
        await trials.begin(Attempt("a"), is_suspect=True)
        async with asyncio.timeout(TIMEOUT_S):
            (await trials.begin(Attempt("b"), is_suspect=False)).end()

    asyncio.run(run())


def test_who_leaves_while_it_waits_leaves_its_place() -> None:
    async def run() -> None:
        trials = Trials()
        first = await trials.begin(Attempt("a"), is_suspect=True)
        second, third = (
            asyncio.create_task(trials.begin(Attempt(name), is_suspect=True)) for name in "bc"
        )
        await asyncio.sleep(0)
        second.cancel()
        first.end()
        async with asyncio.timeout(TIMEOUT_S):
            await third

    asyncio.run(run())


def test_the_next_waits_for_long_only_while_no_engine_has_the_first() -> None:
    async def run() -> None:
        trials, attempt = Trials(), Attempt("a")
        await trials.begin(attempt, is_suspect=True)
        second = asyncio.create_task(trials.begin(Attempt("b"), is_suspect=True))
        await asyncio.sleep(0.3)
        assert not second.done()
        attempt.accept("replica")
        async with asyncio.timeout(TIMEOUT_S):
            await second

    with mock.patch.multiple(trial, TRIAL_S=0.05, LOOK_S=0.01, MAX_TURN_S=60.0):
        asyncio.run(run())


def test_a_turn_ends_also_when_no_engine_takes_it() -> None:
    async def run() -> None:
        trials = Trials()
        await trials.begin(Attempt("a"), is_suspect=True)
        async with asyncio.timeout(TIMEOUT_S):
            await trials.begin(Attempt("b"), is_suspect=True)

    with mock.patch.multiple(trial, TRIAL_S=60.0, LOOK_S=0.01, MAX_TURN_S=0.1):
        asyncio.run(run())
