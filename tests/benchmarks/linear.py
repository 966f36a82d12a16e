"""Time of SmolLM2's matrix products by batch size: compiled kernels, oneDNN, plain torch.

All matrices of the model in turn, so that they come from memory as in a step. Run alone on the
machine: `python -m tests.benchmarks.linear`.
"""

import argparse
import statistics
import time

import torch

from kernels import native_library, ops
from kernels.weights import LinearWeight, Packing

LAYER = [(576, 960), (576, 576), (576, 3072), (1536, 576)]
HEAD = (576, 49152)
NUM_LAYERS = 30
REPEATS = 5


def make_weights(packing: Packing) -> list[LinearWeight]:
    """Random bfloat16 matrices, as a checkpoint has them, packed for float32 inputs."""
    shapes = [*LAYER * NUM_LAYERS, HEAD]
    return [
        ops.linear_weight(torch.randn(out, in_).bfloat16(), None, torch.float32, packing)
        for in_, out in shapes
    ]


def run(weights: list[LinearWeight], inputs: dict[int, torch.Tensor]) -> float:
    """Seconds for every product once."""
    started = time.perf_counter()
    for weight, (in_, _) in zip(weights, [*LAYER * NUM_LAYERS, HEAD], strict=True):
        ops.linear(inputs[in_], weight)
    return time.perf_counter() - started


def main() -> None:
    """Measure, the ways taking turns, and print medians in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", default="1,2,4,8,16,32,64,128,256,512")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native_library.set_num_threads(options.threads)
    ways = {packing: make_weights(packing) for packing in Packing if not packing.is_grouped}
    print("batch" + "".join(f"{packing.name:>12}" for packing in ways) + "  PANELS GFLOP/s")
    with torch.inference_mode():
        for batch in map(int, options.batches.split(",")):
            inputs = {in_: torch.randn(batch, in_) for in_, _ in LAYER}
            times: dict[Packing, list[float]] = {packing: [] for packing in ways}
            for _ in range(REPEATS + 1):
                for packing, weights in ways.items():
                    times[packing].append(run(weights, inputs))
            medians = {packing: statistics.median(runs[1:]) for packing, runs in times.items()}
            size = NUM_LAYERS * sum(i * o for i, o in LAYER) + HEAD[0] * HEAD[1]
            rate = 2 * batch * size / medians[Packing.PANELS] / 1e9
            row = "".join(f"{seconds * 1e3:>9.1f} ms" for seconds in medians.values())
            print(f"{batch:>5}{row}{rate:>16.0f}", flush=True)


if __name__ == "__main__":
    main()
