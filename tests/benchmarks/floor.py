"""The floor of a machine: how fast its cores multiply and its memory reads, and what follows."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from tests.benchmarks.cpu import num_cores
from tests.benchmarks.workload import Workload

GEMM_SIZE = 2048
READ_BYTES = 2**30
TRIES = 7
WEIGHT_BYTES = 2
"""The checkpoint is in bfloat16; nothing need read more, whatever it computes in."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Rates of the machine."""

    gflop_per_s: float
    """Best float32 matrix product of torch on all cores."""
    gb_per_s: float
    """Best reading of memory by torch on all cores."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model makes the machine do."""

    body: int
    """Weights that multiply every token."""
    head: int
    """Weights that multiply only tokens whose successor is asked for."""


def read_size(model: Path) -> ModelSize:
    """Count the matrices of a model folder with tied embeddings."""
    body = head = 0
    with safe_open(model / "model.safetensors", framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  # the object is no mapping
            shape = weights.get_slice(name).get_shape()
            if len(shape) == 2:
                size = shape[0] * shape[1]
                if "embed" in name:
                    head = size
                else:
                    body += size
    return ModelSize(body, head)


def limit_tokens_per_s(workload: Workload, size: ModelSize, floor: Floor) -> float:
    """Output tokens/s of a system that only multiplied matrices, in float32, at the machine's rate.

    Prompts are bound by products. A step of all sequences at once takes the longer of its products
    and of reading the weights once. Attention, KV cache and everything else are left out.
    """
    multiply = floor.gflop_per_s * 1e9 / 2
    prompts = workload.num_requests * workload.prompt_tokens + workload.shared_tokens
    outputs = workload.num_requests * workload.output_tokens
    steps = outputs / workload.concurrency
    weights = size.body + size.head
    decode_s = max(
        outputs * weights / multiply, steps * weights * WEIGHT_BYTES / floor.gb_per_s / 1e9
    )
    return outputs / (prompts * size.body / multiply + decode_s)


def measure_apart() -> Floor:
    """Measure in a process of its own, whose threads are gone when the systems run."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.floor"], capture_output=True, text=True, check=True
    )
    return Floor(**json.loads(done.stdout))


def measure() -> Floor:
    """Measure in this process."""
    torch.set_num_threads(num_cores())
    left, right = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    out = torch.empty(GEMM_SIZE, GEMM_SIZE)
    matrix = torch.ones(READ_BYTES // 4 // GEMM_SIZE, GEMM_SIZE)
    vector = torch.ones(GEMM_SIZE)
    product_s = _best(lambda: torch.mm(left, right, out=out))
    read_s = min(_best(lambda: matrix @ vector), _best(matrix.sum))
    return Floor(2 * GEMM_SIZE**3 / product_s / 1e9, READ_BYTES / read_s / 1e9)


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(TRIES):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    print(json.dumps(asdict(measure())))
