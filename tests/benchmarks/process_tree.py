"""What a process and everything it started use, and how to end them all."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

END_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 10.0


def processes(pid: int) -> list[psutil.Process]:
    """The process and its descendants; none if it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """CPU time of the whole tree."""
    total = 0.0
    for process in processes(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def peak_bytes(pid: int) -> int:
    """Peak memory of the whole tree, pages that processes share counted once.

    For each process its share of what is resident now, and by how much more was resident at its
    peak, which the kernel keeps. Nothing needs to be sampled while the clock runs.
    """
    total = 0
    for process in processes(pid):
        try:
            status = dict(_kibibytes(Path(f"/proc/{process.pid}/status")))
            rollup = dict(_kibibytes(Path(f"/proc/{process.pid}/smaps_rollup")))
        except OSError:  # it ended meanwhile
            continue
        if "Pss" in rollup:
            total += rollup["Pss"] + status["VmHWM"] - status["VmRSS"]
    return total * 1024


def _kibibytes(path: Path) -> Iterator[tuple[str, int]]:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB":
            yield key, int(words[0])


def end(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, then kill whatever is left. The process leads a session of its own."""
    started = [p for p in {*processes(process.pid), *_session(process.pid)} if p.pid != process.pid]
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        _, alive = psutil.wait_procs(started, KILL_TIMEOUT_S)
        for left in alive:
            left.kill()
        psutil.wait_procs(alive, KILL_TIMEOUT_S)


def _session(leader: int) -> list[psutil.Process]:
    """Members of a session, among them those whose parent died before it could end them."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                found.append(process)
        except ProcessLookupError:
            continue
    return found
