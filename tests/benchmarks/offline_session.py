"""A system inside a worker process, without HTTP.

The worker prints one line of JSON when its model is warm and one after each job; a job is a line
of JSON to it. The clock of a job runs in the worker; what it uses is read from outside, the same
way for all systems.
"""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import process_tree
from tests.benchmarks.failure import PeerFailed
from tests.benchmarks.figures import Figures
from tests.benchmarks.workload import Ask, Workload

START_TIMEOUT_S = 400.0
LOG_TAIL = 2000


@dataclass(frozen=True, slots=True)
class Worker:
    """How to start a worker."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


class OfflineSession:
    """Measures one worker."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, limit_s: float) -> None:
        self._process = process
        self._log = log
        self._limit_s = limit_s
        self._start_s = 0.0

    def wait_ready(self) -> None:
        """Wait for its model."""
        started = time.perf_counter()
        self._answer(START_TIMEOUT_S)
        self._start_s = time.perf_counter() - started

    def measure(self, workload: Workload, asks: list[Ask]) -> Figures:
        """Run one workload."""
        pid, stdin = self._process.pid, self._process.stdin
        assert stdin is not None
        job = {
            "concurrency": workload.concurrency,
            "asks": [[ask.prompt_token_ids, ask.max_tokens] for ask in asks],
        }
        cpu_s = process_tree.cpu_seconds(pid)
        stdin.write(json.dumps(job).encode() + b"\n")
        stdin.flush()
        done = self._answer(self._limit_s)
        cpu_s = process_tree.cpu_seconds(pid) - cpu_s
        num_tokens = sum(ask.max_tokens for ask in asks)
        if done["num_tokens"] != num_tokens:
            raise PeerFailed(f"made {done['num_tokens']} of {num_tokens} tokens")
        return Figures(
            tokens_per_s=num_tokens / done["wall_s"],
            start_s=self._start_s,
            peak_bytes=process_tree.peak_bytes(pid),
            cpu_s_per_token=cpu_s / num_tokens,
        )

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """Read its next line of JSON; libraries print others too."""
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.perf_counter() + timeout_s
        # Unbuffered, so that no line waits where select does not see it.
        while select.select([stdout], [], [], max(deadline - time.perf_counter(), 0))[0]:
            line = stdout.readline()
            if not line:
                raise PeerFailed(
                    f"ended early:\n{self._log.read_text(errors='replace')[-LOG_TAIL:]}"
                )
            if line.startswith(b'{"'):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise PeerFailed(f"not done after {timeout_s:g} s")


def worker_file(name: str) -> str:
    """Path of a worker that runs in an environment where our packages are not to be seen."""
    return str(Path(__file__).with_name(f"{name}.py"))


@contextmanager
def open_worker(worker: Worker, limit_s: float) -> Iterator[OfflineSession]:
    """Start a worker and wait for its model."""
    folder = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))
    log = folder / "log"
    try:
        with log.open("wb") as errors:
            process = subprocess.Popen(
                worker.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                start_new_session=True,
                env={**os.environ, **worker.environment, "TMPDIR": str(folder)},
            )
        try:
            session = OfflineSession(process, log, limit_s)
            session.wait_ready()
            yield session
        finally:
            process_tree.end(process)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
