"""How often requests may be placed again: where much is lost, more tries only add to the load.

Every frontend allows a share of its own traffic, so all of them together stay within that share of
the cluster's.
"""

from collections.abc import Callable
from typing import Final

RETRY_SHARE: Final = 0.1
"""Of the requests that come."""
MAX_SAVED: Final = 100.0
"""Retries that a quiet time leaves for a bad one."""
MIN_PER_S: Final = 1.0
"""Retries that are allowed however little comes."""


class RetryBudget:
    """Saved retries: requests add to them, retries take from them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._saved = MAX_SAVED
        self._filled_s = clock()

    def note_request(self) -> None:
        """A request has come."""
        self._saved = min(MAX_SAVED, self._saved + RETRY_SHARE)

    def take(self) -> bool:
        """Use a retry up, if there is one."""
        now = self._clock()
        self._saved = min(MAX_SAVED, self._saved + MIN_PER_S * (now - self._filled_s))
        self._filled_s = now
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
