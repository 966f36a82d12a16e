"""What the comparison asks of a system."""

from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Protocol

from tests.benchmarks.figures import Figures
from tests.benchmarks.workload import Ask, Workload

MODEL_NAME = "smollm2"
"""What servers call the model."""
KV_CACHE_GIB = 2
"""The same for every paged system; more than any workload here fills."""


class Mode(StrEnum):
    """How a system is reached."""

    HTTP = "http"
    OFFLINE = "offline"


class Session(Protocol):
    """A system that runs."""

    def measure(self, workload: Workload, asks: list[Ask]) -> Figures:
        """Run one workload. Raises PeerFailed."""


class System(Protocol):
    """A system in its best configuration for this machine."""

    @property
    def name(self) -> str:
        """Short, for tables."""

    @property
    def dtype(self) -> str:
        """What it computes in."""

    def prepare(self) -> str:
        """Fetch and build what is missing; say which version it is. Raises PeerUnavailable."""

    def keeps_running(self, mode: Mode) -> bool:
        """Whether one session serves all workloads, or each needs one with its own settings."""

    def open(
        self, mode: Mode, workload: Workload, limit_s: float
    ) -> AbstractContextManager[Session]:
        """Start it. Raises PeerFailed, or PeerUnavailable where it has no such mode."""
