"""Where requests come in, and stay counted until they are answered."""

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import Overloaded

RETRY_AFTER_S = 5.0


class Door:
    """Open until it is closed for good; who is inside is served to the end. On one event loop."""

    def __init__(self) -> None:
        self.is_open = True
        self.num_inside = 0
        """Requests that came in and have not been answered in full."""

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Come in for as long as the context lasts. Raises Overloaded when it is closed."""
        if not self.is_open:
            raise Overloaded(
                "The server is stopping.", "Send the request to another one.", RETRY_AFTER_S
            )
        self.num_inside += 1
        try:
            yield
        finally:
            self.num_inside -= 1

    def close(self) -> None:
        """Let nobody in any more."""
        self.is_open = False
