"""Where each client's session was served last: a preference, the cost decides."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

KEEP_S: Final = 600.0
_MAX_SESSIONS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Session:
    """The last turn."""

    replica_id: str
    num_tokens: int
    """Of its prompt and its output: what the next turn's prompt begins with."""
    ended_s: float


class Sessions:
    """Sessions by tenant and name, for ten minutes after each turn."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()

    def note(self, tenant: str, name: str, replica_id: str, num_tokens: int) -> None:
        """A turn has ended."""
        key = tenant, name
        self._sessions.pop(key, None)
        now = self._clock()
        self._sessions[key] = Session(replica_id, num_tokens, now)
        while len(self._sessions) > _MAX_SESSIONS or self._oldest_s < now - KEEP_S:
            self._sessions.popitem(last=False)

    def find(self, tenant: str, name: str) -> Session | None:
        """Return the last turn, if it was within ten minutes."""
        session = self._sessions.get((tenant, name))
        if session is None or session.ended_s < self._clock() - KEEP_S:
            return None
        return session

    @property
    def _oldest_s(self) -> float:
        return next(iter(self._sessions.values())).ended_s
