"""The gate before a GPU: every kernel compiles for every target, without spills, within limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Bytes of shared memory that a program may have.
SHARED_BYTES = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
PRODUCTS = ("decode_kernel", "prefill_kernel", "int4_linear_kernel", "fp8_linear_kernel")
NUM_KERNELS = 45


@pytest.mark.slow
@pytest.mark.parametrize("target", SHARED_BYTES)
def test_kernels_compile(target: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "TRITON" not in name}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "tests.triton.compile_gate", target]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels) >= NUM_KERNELS
    faults = [
        kernel
        for kernel in kernels
        if kernel["spills"] or kernel["stack"] or kernel["shared"] > SHARED_BYTES[target]
    ]
    assert not faults, "spills, or more shared memory than there is:\n" + "\n".join(
        map(str, faults)
    )
    for name in PRODUCTS:
        own = [k for k in kernels if k["kernel"].startswith(name) and "float32" not in k["kernel"]]
        assert own, f"no launch of {name}"
        assert all(kernel["tensor_ops"] for kernel in own), f"{name}: no tensor-core instruction"
