"""What every part of the benchmark is handed: a device, sizes, ceilings; and how rows are made."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tests.benchmarks.gpu.device import Device, device_seconds, graph_seconds
from tests.benchmarks.gpu.sizes import Sizes

Row = dict[str, Any]
"""What was measured, as "what", and the figures by name and unit."""
Rows = Iterator[Row]
Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured in the same run as what is compared with them."""

    gb_per_s: float
    """Read plus written by a large copy"""
    tflop_per_s: float
    """A square bfloat16 product"""

    def seconds(self, num_bytes: float, num_flops: float) -> float:
        """Return the least time in which so much is moved and computed."""
        return max(num_bytes / self.gb_per_s / 1e9, num_flops / self.tflop_per_s / 1e12)


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmark."""

    device: Device
    sizes: Sizes
    ceilings: Ceilings

    @classmethod
    def start(cls, device: Device, sizes: Sizes) -> "Bench":
        """Measure the ceilings; takes some seconds."""
        place, size, repeats = device.place, sizes.matmul_size, sizes.repeats
        source = torch.empty(sizes.copy_bytes, dtype=torch.uint8, device=place)
        target = torch.empty_like(source)
        copy_s = device_seconds(device, partial(target.copy_, source), repeats)
        a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=place) for _ in range(2))
        product = torch.empty_like(a)
        matmul_s = device_seconds(device, partial(torch.matmul, a, b, out=product), repeats)
        moved, multiplied = 2 * sizes.copy_bytes, 2 * size**3
        return cls(device, sizes, Ceilings(moved / copy_s / 1e9, multiplied / matmul_s / 1e12))

    def num_copies(self, num_bytes: float) -> int:
        """Return how many calls, with so many bytes of its own each, leave the cache behind."""
        wanted = -(-self.sizes.cache_bytes // max(int(num_bytes), 1))
        return min(wanted, self.sizes.max_copies)

    def row(self, what: str, runs: Sequence[Run], num_bytes: float, num_flops: float = 0.0) -> Row:
        """Time runs of a kernel, each with data of its own, beside what one has to do at least."""
        seconds = graph_seconds(self.device, runs, self.sizes.repeats)
        return self.kernel_row(what, seconds, num_bytes, num_flops)

    def kernel_row(
        self, what: str, seconds: float, num_bytes: float, num_flops: float = 0.0
    ) -> Row:
        """Make the row of a kernel that took so long."""
        rates: Row = {"GB/s": num_bytes / seconds / 1e9}
        if num_flops:
            rates["TFLOP/s"] = num_flops / seconds / 1e12
        floor_s = self.ceilings.seconds(num_bytes, num_flops)
        return {"what": what, "us": seconds * 1e6, **rates, "of ceiling": floor_s / seconds}
