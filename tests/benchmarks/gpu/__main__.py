"""Everything in one command: `python -m tests.benchmarks.gpu`, under nine minutes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_OURS = ("tests", "engine", "kernels")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench-gpu"), help="folder of results.json and .svg"
    )
    parser.add_argument(
        "--only", nargs="*", help="parts whose names contain one of these, e.g. attention Qwen3"
    )
    options = parser.parse_args()
    try:
        measure(options.out, options.only or [""])
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in _OURS:
            raise
        sys.exit(
            f"The GPU benchmarks need {missing}, and it cannot be imported: {error}.\n"
            "On a machine with a CUDA GPU, install PageRay with its extra gpu "
            "(pip install -e '.[gpu]'), or name a Python that has it: make bench-gpu PYTHON=PATH"
        )


def measure(out: Path, only: Sequence[str]) -> None:
    """Measure the parts named on the CUDA device. Leaves the process where there is none."""
    import torch

    from tests.benchmarks.gpu.device import CudaDevice
    from tests.benchmarks.gpu.sizes import Sizes
    from tests.benchmarks.gpu.suite import run

    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here.\nRun this on a machine with one.")
    run(CudaDevice(), Sizes(), out, only)


if __name__ == "__main__":
    main()
