"""Device time of launches, and what the device can do at best."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

_WARM_UPS = 3
_COPY_BYTES = 2 << 30
_MATMUL_SIZE = 8192


def device_seconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Return the median time of a run on the stream, waiting for launches included."""
    for _ in range(_WARM_UPS):
        run()
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
    for start, end in zip(starts, ends, strict=True):
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    pairs = zip(starts, ends, strict=True)
    milliseconds: list[float] = [start.elapsed_time(end) for start, end in pairs]
    return statistics.median(milliseconds) / 1e3


def graph_seconds(runs: Sequence[Callable[[], object]], repeats: int = 20) -> float:
    """Return the median device time of one of `runs`, launched by a graph that holds them all.

    Without Python between them; give as many as it takes to leave the cache behind.
    """
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    return device_seconds(graph.replay, repeats) / len(runs)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured in the same run as what is compared with them."""

    gb_per_s: float
    """Read plus written by a large copy"""
    tflop_per_s: float
    """A square bfloat16 product"""


def measure_ceilings() -> Ceilings:
    """Measure them; takes some seconds."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_s = device_seconds(partial(target.copy_, source))
    a, b = (
        torch.randn(_MATMUL_SIZE, _MATMUL_SIZE, dtype=torch.bfloat16, device="cuda")
        for _ in range(2)
    )
    product = torch.empty_like(a)
    matmul_s = device_seconds(partial(torch.matmul, a, b, out=product))
    return Ceilings(2 * _COPY_BYTES / copy_s / 1e9, 2 * _MATMUL_SIZE**3 / matmul_s / 1e12)
