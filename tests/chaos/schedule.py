"""What goes wrong in a run, and when: a pure function of the seed.

Knows the kinds of fault and not how they are done. A fault waits until the cluster is whole again
after the one before, or is hasty and does not; no two that take a replica come together, so that
one always lives.
"""

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

PAUSES_S = (0.5, 3.0)
"""On the whole cluster, so that requests run everywhere again."""
HASTY_SHARE = 0.3
HASTY_PAUSES_S = (0.0, 1.0)


class FaultKind(StrEnum):
    """What is done to whom."""

    KILL_RANK = "kill rank"
    STOP_RANK = "stop rank"
    KILL_REPLICA = "kill replica"
    STOP_REPLICA = "stop replica"
    KILL_FRONTEND = "kill frontend"
    STOP_FRONTEND = "stop frontend"
    KILL_HAPROXY = "kill haproxy"
    KILL_CONTROLLER = "kill controller"
    KILL_RAYLET = "host loses its raylet"
    CUT_HOST = "host is cut off"
    LEAVE_HOST = "host dies"

    @property
    def role(self) -> str:
        """What kind of process it is done to; empty: to a host."""
        verb, _, role = self.value.partition(" ")
        return role if verb in {"kill", "stop"} else ""

    @property
    def excuses_clients(self) -> bool:
        """Whether clients may lose the very frontend, or the way to it, that they talk to."""
        return self in _EXCUSING

    @property
    def takes_replica(self) -> bool:
        """Whether a replica may be gone until the cluster is whole again."""
        return self.role in {"rank", "replica", ""}

    @property
    def lasts(self) -> bool:
        """Whether it goes on for some time and is then undone."""
        return self in _LASTING


_EXCUSING = {
    FaultKind.KILL_FRONTEND,
    FaultKind.KILL_HAPROXY,
    FaultKind.KILL_RAYLET,
    FaultKind.CUT_HOST,
    FaultKind.LEAVE_HOST,
}
_LASTING = {
    FaultKind.STOP_RANK: (2.0, 15.0),
    FaultKind.STOP_REPLICA: (2.0, 8.0),
    FaultKind.STOP_FRONTEND: (0.5, 3.0),
    FaultKind.KILL_RAYLET: (0.5, 3.0),
    FaultKind.CUT_HOST: (1.0, 20.0),
    FaultKind.LEAVE_HOST: (2.0, 10.0),
}
"""From a hiccup that nobody has to notice, to well beyond the time after which one is given up."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    kind: FaultKind
    pause_s: float
    """Before it, from when the cluster is whole, or from the end of the one before."""
    lot: float
    """In [0, 1): which of those that it can be done to."""
    duration_s: float = 0.0
    """Until it is undone, where it lasts."""
    is_hasty: bool = False
    """Whether it comes while the one before is still felt."""


def schedule(seed: int, kinds: Collection[FaultKind]) -> Iterator[Fault]:
    """Yield faults without end; every kind comes once before any comes again."""
    draw = random.Random(f"faults {seed}")
    is_replica_gone = False
    while True:
        round_of_kinds = sorted(kinds)
        draw.shuffle(round_of_kinds)
        for kind in round_of_kinds:
            is_hasty = draw.random() < HASTY_SHARE and not (is_replica_gone and kind.takes_replica)
            is_replica_gone = kind.takes_replica or (is_hasty and is_replica_gone)
            pauses_s = HASTY_PAUSES_S if is_hasty else PAUSES_S
            yield Fault(
                kind,
                pause_s=draw.uniform(*pauses_s),
                lot=draw.random(),
                duration_s=draw.uniform(*_LASTING[kind]) if kind.lasts else 0.0,
                is_hasty=is_hasty,
            )
