"""Who was here of late, and may soon be again."""

from collections.abc import Callable
from typing import Final

ACTIVE_S: Final = 60.0
"""A tenant who has sent something within so long may soon send more."""


class ActiveTenants:
    """The tenants of the last minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_s: dict[str, float] = {}
        """Time of each one's last request, the oldest first."""

    def note(self, tenant: str) -> None:
        """The tenant has sent a request."""
        self._last_s.pop(tenant, None)
        self._last_s[tenant] = self._clock()

    def others(self, tenant: str) -> list[str]:
        """Return those who were here beside this one."""
        oldest_s = self._clock() - ACTIVE_S
        while self._last_s and next(iter(self._last_s.values())) < oldest_s:
            del self._last_s[next(iter(self._last_s))]
        return [other for other in self._last_s if other != tenant]
