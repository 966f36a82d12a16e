"""Where the HTTP layer gets tokens from, whatever is behind it."""

from collections.abc import AsyncGenerator
from typing import Protocol

from cluster.decision import Decision
from cluster.request_times import RequestTimes
from cluster.snapshot import AdmissionSnapshot, ReplicaSnapshot
from engine.output import TokenOutput
from engine.request import GenerateRequest


class TokenSource(Protocol):
    """Runs requests somewhere and tells how the engines fare."""

    def generate(
        self, request: GenerateRequest, times: RequestTimes
    ) -> AsyncGenerator[TokenOutput]:
        """Yield the outputs of all choices until each has a finish reason.

        `times` learns what happens on the way.
        Closing the iterator early aborts what is left. Raises InvalidRequest, Overloaded,
        DeadlinePassed or ReplicaLost, before or between outputs.
        """

    async def abort(self, request_id: str, choice_index: int) -> None:
        """End one choice early; its last output then carries the finish reason `abort`."""

    def snapshots(self) -> list[ReplicaSnapshot]:
        """Newest snapshot of every known replica."""

    def admission(self) -> AdmissionSnapshot:
        """What waits for a replica, and what has been placed."""

    def decisions(self, request_id: str) -> list[Decision]:
        """Why a request went where it went, an entry for each attempt; empty: not known here."""
