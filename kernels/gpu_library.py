"""Finds the Triton kernels where they can run."""

import importlib
import importlib.util
from functools import cache
from types import ModuleType


@cache
def gpu_operations() -> ModuleType | None:
    """Return `kernels.gpu.operations`; None where triton is not installed.

    Imported on first use: triton takes a while, and the CPU path needs none of it.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("kernels.gpu.operations")
