"""What this machine's processor can do."""

import os
from pathlib import Path

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def has_bfloat16() -> bool:
    """Whether it multiplies bfloat16; without, systems emulate it and float32 is faster."""
    return bool(BFLOAT16_FLAGS & _flags())


def describe() -> str:
    """Name, cores and vector instructions."""
    names = [value for key, value in _fields() if key == "model name"]
    vectors = sorted(_flags() & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16"})
    return f"{names[0] if names else 'unknown'}, {num_cores()} cores, {' '.join(vectors)}"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def core_ranges() -> str:
    """Those cores, as taskset writes them."""
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))


def _flags() -> set[str]:
    for key, value in _fields():
        if key in ("flags", "Features"):
            return set(value.split())
    return set()


def _fields() -> list[tuple[str, str]]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]
