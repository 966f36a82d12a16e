"""Finds and loads the compiled CPU kernels of kernels/native, where there are any.

They are an extension that is built when PageRay is installed on a machine with a C++ compiler.
Without it, or on a processor it was not built for, torch's own operations do the work.
"""

import ctypes
import functools
import importlib.util

import torch

_MODULES = {"AVX512": "kernels._native_avx512", "AVX2": "kernels._native_avx2"}
_INTERFACE_VERSION = 3  # of kernels/native; a call with wrong arguments would end the process
_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES = {
    "set_num_threads": [_COUNT],
    "linear": [_POINTER] * 3 + [_COUNT],
    "add_rms_norm": [_POINTER] * 4 + [_COUNT] * 2,
    "silu_and_mul": [_POINTER] * 2 + [_COUNT] * 2,
    "rotate_and_store": [_POINTER] * 5,
    "paged_attention": [_POINTER] * 3 + [_COUNT, _POINTER],
    "self_attention": [_POINTER] * 7 + [_COUNT, _POINTER],
    "feed_forward": [_POINTER] * 4 + [_COUNT],
}


@functools.cache
def find_native_library() -> ctypes.CDLL | None:
    """Return the library for this processor; None where there is none.

    Its functions are declared; they take addresses of contiguous data and of the
    structs of kernels/native_structs.py.
    Raises RuntimeError when it was built from other sources than these.
    """
    module = _MODULES.get(torch.backends.cpu.get_cpu_capability())
    spec = importlib.util.find_spec(module) if module else None
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    version = getattr(library, "interface_version", lambda: None)()
    if version != _INTERFACE_VERSION:
        raise RuntimeError(
            f"{spec.origin} was built from other sources (interface {version}, "
            f"{_INTERFACE_VERSION} expected).\nBuild it again: pip install -e ., or `make setup`."
        )
    for name, argument_types in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = argument_types
        function.restype = None
    library.num_lanes.restype = _COUNT
    return library


def native_library() -> ctypes.CDLL:
    """Return the library where `can_run` has told that it is there."""
    library = find_native_library()
    assert library is not None
    return library


def can_run(width: int, dtype: torch.dtype) -> bool:
    """Whether there are compiled kernels for rows of `width` elements of `dtype`."""
    library = find_native_library()
    return library is not None and dtype == torch.float32 and width % library.num_lanes() == 0


def set_num_threads(num_threads: int) -> None:
    """Let the kernels use so many threads, the caller's included; nothing without a library."""
    library = find_native_library()
    if library is not None:
        library.set_num_threads(num_threads)
