"""How much of what runs is whose, so that one tenant leaves something for the others."""

from collections.abc import Callable
from typing import Final

from cluster.request_need import WATERMARK

ACTIVE_S: Final = 60.0
"""A tenant who has sent something within so long may soon send more."""
RESERVE: Final = 0.1
"""Share of a replica that a tenant with more than its part leaves alone while others are active."""


class TenantShares:
    """Prompt tokens in flight by tenant, and who was active of late."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._num_tokens: dict[str, int] = {}
        self._active: dict[str, tuple[float, float]] = {}
        """Tenant to the time of its last request and its weight, the oldest first."""

    def start(self, tenant: str, weight: float, num_tokens: int) -> None:
        """A request of the tenant begins."""
        self._num_tokens[tenant] = self._num_tokens.get(tenant, 0) + num_tokens
        self._active.pop(tenant, None)
        self._active[tenant] = (self._clock(), weight)

    def end(self, tenant: str, num_tokens: int) -> None:
        """A request of the tenant is over."""
        self._num_tokens[tenant] -= num_tokens
        if not self._num_tokens[tenant]:
            del self._num_tokens[tenant]

    def spare(self, tenant: str, weight: float) -> float:
        """Return the share of a replica's blocks that the tenant's next request leaves free."""
        self._forget_inactive()
        others = sum(
            other_weight for other, (_, other_weight) in self._active.items() if other != tenant
        )
        if not others:
            return WATERMARK
        total = sum(self._num_tokens.values())
        part = weight / (weight + others)
        own = self._num_tokens.get(tenant, 0)
        return RESERVE if own > part * total else WATERMARK

    def _forget_inactive(self) -> None:
        oldest_s = self._clock() - ACTIVE_S
        while self._active:
            tenant = next(iter(self._active))
            if self._active[tenant][0] >= oldest_s:
                return
            del self._active[tenant]
