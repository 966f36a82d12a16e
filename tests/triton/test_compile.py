"""The gate before a GPU: every kernel compiles for every target, without spills, within limits."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

# Bytes of shared memory that a program may have.
SHARED_BYTES = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
PRODUCTS = ("decode_kernel", "prefill_kernel", "int4_linear_kernel", "fp8_linear_kernel")
NUM_KERNELS = 45

Gate = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Gate]]]:
    """Compile for all targets, two at a time: the compiler has one thread."""
    environment = {name: value for name, value in os.environ.items() if "TRITON" not in name}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))

    def compile_for(target: str) -> Gate:
        command = [sys.executable, "-W", "ignore", "-m", "tests.triton.compile_gate", target]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {target: pool.submit(compile_for, target) for target in SHARED_BYTES}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", SHARED_BYTES)
def test_kernels_compile(target: str, gates: dict[str, Future[Gate]]) -> None:
    done = gates[target].result()
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels) >= NUM_KERNELS
    limit = SHARED_BYTES[target]
    faults = [k for k in kernels if k["spills"] or k["stack"] or k["shared"] > limit]
    shown = "\n".join(map(str, faults))
    assert not faults, f"spills, or more shared memory than there is:\n{shown}"
    for name in PRODUCTS:
        own = [k for k in kernels if k["kernel"].startswith(name) and "float32" not in k["kernel"]]
        assert own, f"no launch of {name}"
        assert all(kernel["tensor_ops"] for kernel in own), f"{name}: no tensor-core instruction"
