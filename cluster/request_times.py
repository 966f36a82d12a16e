"""When what became of one request, as its frontend sees it: for metrics and traces.

All times are readings of `time.monotonic` in the frontend's process, in seconds.
"""

import math
import time
from dataclasses import dataclass, field

from engine.output import StartTimes, TokenOutput


@dataclass(slots=True)
class AttemptTimes:
    """One try at a request, on one replica."""

    began_s: float = field(default_factory=time.monotonic)
    replica_id: str | None = None
    """Where it was placed; None: nowhere so far."""
    placed_s: float | None = None
    start: StartTimes | None = None
    """What its engine says of the way to the first token; None: there is none yet."""
    first_token_s: float = math.inf
    """When that token came here."""
    ended_s: float | None = None
    loss: str | None = None
    """Why it was to no avail, if it was."""

    def place(self, replica_id: str | None) -> None:
        """It has its replica."""
        self.placed_s, self.replica_id = time.monotonic(), replica_id

    def take(self, output: TokenOutput) -> None:
        """Its engine has brought something."""
        if output.start is not None and self.start is None:
            self.start, self.first_token_s = output.start, time.monotonic()

    def end(self) -> None:
        """It is over."""
        self.ended_s = time.monotonic()


@dataclass(slots=True)
class RequestTimes:
    """One request from its arrival on, with every attempt at it."""

    arrived_s: float
    """When the client's request came, of which it may be one of several prompts."""
    read_s: float = field(default_factory=time.monotonic)
    """When it was ready to be placed."""
    attempts: list[AttemptTimes] = field(default_factory=list)

    @property
    def first_attempt_with_token(self) -> AttemptTimes | None:
        """The one that brought the first token; None: there is no token yet."""
        return next((attempt for attempt in self.attempts if attempt.start is not None), None)
