"""Compiles every kernel as it is launched, for a GPU that is not there, and tells what came out.

A process of its own, because the interpreter of the other tests is switched on for good. What is
launched is what the engine launches: the functions of kernels/gpu run on CPU tensors, and launches
end after the compiler, so types, alignment and constants are those of a real launch. Prints one
JSON object a kernel: `python -m tests.triton.compile_gate sm_90`.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from tests.triton.launches import launch_all

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class NoDevice:
    """Stands in for Triton's driver: knows what to compile for, and has nothing to run it on."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def compile_all(target: GPUTarget) -> dict[str, Any]:
    """Return the compiled kernels by name and launch."""
    triton.runtime.driver.set_active(NoDevice(target))
    kernels: dict[str, Any] = {}
    launch: Callable[..., Any] = JITFunction.run
    label = ""

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        name = f"{self.__name__.strip('_')} {label}"
        kernels.setdefault(f"{name} {kernel.hash[:6]}", kernel)
        return kernel

    JITFunction.run = compile_only
    has_float8 = not (target.backend == "cuda" and target.arch < 89)
    for label, run in launch_all(has_float8):  # noqa: B007  read by the function above
        run()
    return kernels


def describe_cuda(kernel: Any) -> dict[str, Any]:
    """Read registers and stack from the machine code, tensor-core instructions before ptxas.

    What does not fit into registers lies on the stack. Disassembling the code to count spills says
    no more, and takes longer than compiling it.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(_CUOBJDUMP), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tensor_ops = re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", kernel.asm["ptx"])
    return {
        "registers": int(_find(r"REG:(\d+)", usage)),
        "stack": int(_find(r"STACK:(\d+)", usage)),
        "tensor_ops": len(tensor_ops),
    }


def describe_hip(kernel: Any) -> dict[str, Any]:
    """Read the same from the assembly."""
    code = kernel.asm["amdgcn"]
    return {
        "registers": int(_find(r"\.vgpr_count:\s+(\d+)", code)),
        "stack": int(_find(r"\.private_segment_fixed_size:\s+(\d+)", code)),
        "tensor_ops": len(re.findall(r"\bv_mfma", code)),
    }


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, f"no {pattern} in what the compiler's tools say"
    return match[1]


def main() -> None:
    """Compile for one target."""
    target = TARGETS[sys.argv[1]]
    describe = describe_cuda if target.backend == "cuda" else describe_hip
    for name, kernel in compile_all(target).items():
        facts = {"triton": triton.__version__, "kernel": name, "shared": kernel.metadata.shared}
        print(json.dumps({**facts, **describe(kernel)}), flush=True)


if __name__ == "__main__":
    main()
