"""The gate before a GPU: every kernel compiles for every target and stays within its limits.

With the installed Triton, and with the lowest and the newest that GPU images may bring.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import triton

# Bytes of shared memory that a program may have.
SHARED_BYTES = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
PRODUCTS = ("decode_kernel", "prefill_kernel", "int4_linear_kernel", "fp8_linear_kernel")
NUM_KERNELS = 45
# Bytes on the stack, where what does not fit into registers lies. These are known, all others are
# faults: by version, target and how the kernel's name begins.
KNOWN_STACK_BYTES = {
    ("3.7.1", "gfx942", "prefill_kernel attention float8"): 8,
    ("3.6.0", "sm_100", "prefill_kernel attention SmolLM2-135M torch.bfloat16"): 16,
    ("3.6.0", "sm_100", "decode_kernel attention Gemma-2-9B"): 8,
    ("3.9.0", "sm_100", "sample_kernel sample torch.float32"): 8,
}
OTHERS = (Path(__file__).parent / "versions.txt").read_text().split()
VERSIONS = dict.fromkeys([triton.__version__, *OTHERS])

Gate = tuple[str, str]
"""Version of Triton and target."""
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Gate, Future[Done]]]:
    """Compile for what was selected, two at a time: the compiler has one thread."""
    environment = {name: value for name, value in os.environ.items() if "TRITON" not in name}
    wanted = [
        (str(item.callspec.params["version"]), str(item.callspec.params["target"]))
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
    ]

    def compile_for(gate: Gate) -> Done:
        version, target = gate
        command = [sys.executable, "-W", "ignore", "-m", "tests.triton.compile_gate", target]
        own = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
        if version != triton.__version__:
            path = [str(folder_of(version)), os.environ.get("PYTHONPATH", "")]
            own["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        return subprocess.run(
            command, env=environment | own, capture_output=True, text=True, check=False
        )

    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {gate: pool.submit(compile_for, gate) for gate in wanted if is_here(gate[0])}


def folder_of(version: str) -> Path:
    """Return where `make test` puts a version."""
    return Path(sys.prefix) / "tritons" / version


def is_here(version: str) -> bool:
    return version == triton.__version__ or (folder_of(version) / ".installed").is_file()


def known_stack(version: str, target: str, kernel: dict[str, Any]) -> int:
    known = (
        num_bytes
        for (known_version, known_target, name), num_bytes in KNOWN_STACK_BYTES.items()
        if (known_version, known_target) == (version, target) and kernel["kernel"].startswith(name)
    )
    return max(known, default=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", SHARED_BYTES)
@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_compile(version: str, target: str, compiled: dict[Gate, Future[Done]]) -> None:
    if not is_here(version):
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"Triton {version} is not in {folder_of(version)}, where `make test` puts it")
    done = compiled[version, target].result()
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["triton"] for kernel in kernels} == {version}
    assert len(kernels) >= NUM_KERNELS
    limit = SHARED_BYTES[target]
    faults = [
        kernel
        for kernel in kernels
        if kernel["shared"] > limit or kernel["stack"] > known_stack(version, target, kernel)
    ]
    shown = "\n".join(map(str, faults))
    assert not faults, f"spills, or more shared memory than there is:\n{shown}"
    for name in PRODUCTS:
        own = [k for k in kernels if k["kernel"].startswith(name) and "float32" not in k["kernel"]]
        assert own, f"no launch of {name}"
        assert all(kernel["tensor_ops"] for kernel in own), f"{name}: no tensor-core instruction"
