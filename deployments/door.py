"""Where requests come in, and stay counted until they are answered."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import Overloaded

RETRY_AFTER_S = 5.0


class Door:
    """Open until it is closed for good; who is inside is served to the end. On one event loop."""

    def __init__(self) -> None:
        self.is_open = True
        self._inside: set[asyncio.Task[object]] = set()

    @property
    def num_inside(self) -> int:
        """Requests that came in and have not been answered in full."""
        return len(self._inside)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Come in for as long as the context lasts. Raises Overloaded when it is closed."""
        if not self.is_open:
            raise Overloaded(
                "The server is stopping.", "Send the request to another one.", RETRY_AFTER_S
            )
        task = asyncio.current_task()
        assert task is not None, "every request has a task of its own"
        self._inside.add(task)
        try:
            yield
        finally:
            self._inside.discard(task)

    def close(self) -> None:
        """Let nobody in any more."""
        self.is_open = False

    def turn_out(self) -> None:
        """End whatever is still inside, where it stands."""
        for task in self._inside:
            task.cancel()
