"""Requests that may have cost a replica its life go on one after the other.

All that had just begun on a lost replica are suspects, and would move to the next one together: if
one of them kills that too, nobody could tell which. Each has the next replicas to itself until it
has brought something.
"""

import asyncio
from typing import Final

from deployments.attempt import Attempt

TRIAL_S: Final = 1.0
"""Time with an engine after which the next one's trial begins all the same: a long prompt is no
reason to let others wait."""
MAX_TURN_S: Final = 5.0
"""The same when no engine has taken it so far."""
LOOK_S: Final = 0.1


class Trials:
    """Whose turn it is, at one frontend. Lives on one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def begin(self, attempt: Attempt, *, is_suspect: bool) -> "Trial":
        """Wait for the turn of an attempt; who is no suspect needs none."""
        if is_suspect:
            await self._turn.acquire()
        return Trial(attempt, self._turn if is_suspect else None)


class Trial:
    """The turn of one attempt, if it needs one, until its `end`."""

    def __init__(self, attempt: Attempt, turn: asyncio.Lock | None) -> None:
        self._attempt = attempt
        self._turn = turn
        if turn is not None:
            self._loop = asyncio.get_running_loop()
            self._ends_s = self._loop.time() + MAX_TURN_S
            self._wait_for_engine()

    def end(self) -> None:
        """Let the next one begin, if that has not happened."""
        if self._turn is not None:
            self._timer.cancel()
            self._turn.release()
            self._turn = None

    def _wait_for_engine(self) -> None:
        if self._attempt.accepted_by is not None:
            self._timer = self._loop.call_later(TRIAL_S, self.end)
        elif self._loop.time() < self._ends_s:
            self._timer = self._loop.call_later(LOOK_S, self._wait_for_engine)
        else:
            self.end()
