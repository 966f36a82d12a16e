"""llama.cpp's own offline benchmark, whose figures come from its output."""

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence

from tests.benchmarks.failure import PeerFailed
from tests.benchmarks.figures import Figures
from tests.benchmarks.workload import Ask, Workload


class BatchedBench:
    """Runs it once for each workload: batches of `concurrency`, all prompts, then all outputs."""

    def __init__(self, command: Sequence[str], limit_s: float) -> None:
        self._command = command
        self._limit_s = limit_s

    def measure(self, workload: Workload, asks: list[Ask]) -> Figures:
        """Run one batch; further batches would be the same again."""
        context = workload.concurrency * workload.context_tokens
        command = [*self._command, "-c", str(context), "--output-format", "jsonl"]
        command += ["-npp", str(workload.prompt_tokens), "-ntg", str(workload.output_tokens)]
        command += ["-npl", str(workload.concurrency)]
        started = time.perf_counter()
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            limit = threading.Timer(self._limit_s, process.kill)
            limit.start()
            # Of all ways to wait only this one tells what the process has used.
            _, status, usage = os.wait4(process.pid, 0)
            limit.cancel()
            wall_s = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            printed = output.read().decode(errors="replace")
        if process.returncode:
            raise PeerFailed(f"exit status {process.returncode}:\n{printed[-1000:]}")
        result = next(json.loads(line) for line in printed.splitlines() if line.startswith('{"'))
        num_tokens = result["pl"] * result["tg"]
        return Figures(
            tokens_per_s=num_tokens / result["t"],
            start_s=wall_s - result["t"],
            peak_bytes=usage.ru_maxrss * 1024,
            # Loading the model included, which its output does not tell apart.
            cpu_s_per_token=(usage.ru_utime + usage.ru_stime) / num_tokens,
        )
