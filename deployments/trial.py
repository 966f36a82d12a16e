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


class Trials:
    """Whose turn it is, at one frontend. Lives on one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def begin(self, attempt: Attempt) -> "Trial":
        """Wait for the turn of an attempt."""
        await self._turn.acquire()
        return Trial(attempt, self._turn)


class Trial:
    """The turn of one attempt, until its `end`."""

    def __init__(self, attempt: Attempt, turn: asyncio.Lock) -> None:
        self._attempt = attempt
        self._turn: asyncio.Lock | None = turn
        self._watch()

    def end(self) -> None:
        """Let the next one begin, if that has not happened."""
        if self._turn is not None:
            self._timer.cancel()
            self._turn.release()
            self._turn = None

    def _watch(self) -> None:
        # Time without an engine is no trial.
        is_running = self._attempt.accepted_by is not None
        self._timer = asyncio.get_running_loop().call_later(
            TRIAL_S, self.end if is_running else self._watch
        )
