"""Where everything runs, and what tells how long it took there."""

import gc
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from engine.cuda_graph import GraphRecorder

_WARM_UPS = 3
_HEAD_START_CYCLES = 10_000_000
"""Some milliseconds: longer than it takes to launch any step."""


class Event(Protocol):
    """A point on the device's time line."""

    def record(self) -> None:
        """Place it behind all that was launched so far."""

    def elapsed_time(self, end_event: Any, /) -> float:
        """Return the milliseconds from this one to a later one, both of which have passed."""


class Device(Protocol):
    """A GPU, or what a test has in place of one."""

    place: torch.device
    name: str

    def event(self) -> Event:
        """Make an event, nowhere yet."""

    def head_start(self) -> None:
        """Keep the device busy with nothing, while what it is to do next is launched."""

    def record(self, run: Callable[[], None]) -> Callable[[], object]:
        """Run it, and return what launches the same again without Python between."""

    def synchronize(self) -> None:
        """Wait for all that was launched."""

    def free(self) -> None:
        """Give back memory that is not in use any more."""


class CudaDevice:
    """The current CUDA device."""

    def __init__(self) -> None:
        self.place = torch.device("cuda")
        self.name = torch.cuda.get_device_name()

    def event(self) -> Event:
        """Make an event."""
        return torch.cuda.Event(enable_timing=True)

    def head_start(self) -> None:
        """Spin."""
        torch.cuda._sleep(_HEAD_START_CYCLES)

    def record(self, run: Callable[[], None]) -> Callable[[], object]:
        """Record a CUDA graph."""
        return GraphRecorder()(run)

    def synchronize(self) -> None:
        """Wait."""
        torch.cuda.synchronize()

    def free(self) -> None:
        """Collect cycles first: they may hold tensors."""
        gc.collect()
        torch.cuda.empty_cache()


def device_seconds(
    device: Device, run: Callable[[], object], repeats: int, *, head_start: bool = True
) -> float:
    """Return the median time of a run on the device.

    Args:
        device: where it runs.
        run: launches it.
        repeats: runs to take the median of.
        head_start: whether launches come first; otherwise waiting for them counts too.
    """
    for _ in range(_WARM_UPS):
        run()
    pairs = [(device.event(), device.event()) for _ in range(repeats)]
    for start, end in pairs:
        if head_start:
            device.head_start()
        start.record()
        run()
        end.record()
    device.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3


def graph_seconds(device: Device, runs: Sequence[Callable[[], object]], repeats: int) -> float:
    """Return the median time of one of `runs`, launched together.

    Give as many, each with data of its own, as it takes to leave the device's cache behind.
    """

    def run_all() -> None:
        for run in runs:
            run()

    return device_seconds(device, device.record(run_all), repeats) / len(runs)
