"""What this process may take of the host: memory and cores, within its container's limits."""

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_host_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Return what the machine has left, or what the container's limit leaves, if that is less."""
    available = _available_of_machine(meminfo)
    limit = _read_number(cgroup / "memory.max")
    used = _read_number(cgroup / "memory.current")
    if limit is None or used is None:
        return available
    # Cached file pages count as used, yet are given up for the asking.
    reclaimable = _read_field(cgroup / "memory.stat", "inactive_file") or 0
    return max(min(available, limit - used + reclaimable), 0)


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Return the cores this process may run on, or those its container has paid for, if fewer."""
    # Not every system tells the affinity.
    affinity = getattr(os, "sched_getaffinity", None)
    num_cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    limit = cgroup / "cpu.max"  # "max 100000" or, for 1.5 cores, "150000 100000"
    if not limit.exists():
        return num_cores
    quota, period = limit.read_text(encoding="utf-8").split()
    return num_cores if quota == "max" else max(min(num_cores, int(quota) // int(period)), 1)


def _available_of_machine(meminfo: Path) -> int:
    kilobytes = _read_field(meminfo, "MemAvailable:")
    if kilobytes is not None:
        return kilobytes * 1024
    # Not Linux: count half of the memory as available.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _read_field(path: Path, name: str) -> int | None:
    if not path.exists():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return None


def _read_number(path: Path) -> int | None:
    """Read a cgroup file; None when it is not there or says "max"."""
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8").strip()
    return int(text) if text.isdigit() else None
