"""Finds the Triton kernels where they can run, and tells what they can do there."""

import importlib
import importlib.util
from functools import cache
from types import ModuleType

import torch


@cache
def gpu_operations() -> ModuleType | None:
    """Return `kernels.gpu.operations`; None where triton is not installed.

    Imported on first use: triton takes a while, and the CPU path needs none of it.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("kernels.gpu.operations")


def can_cache_float8(device: torch.device) -> bool:
    """Whether attention reads and writes float8 there: Triton has it for sm_89 and later."""
    if device.type != "cuda" or gpu_operations() is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)
