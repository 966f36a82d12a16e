"""A `pageray serve` of our own for tests: started, watched and ended by process id."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


def free_port() -> int:
    """A TCP port nobody uses at present, and that no kernel or Ray hands out before it is bound."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> float:
    """Poll until the condition holds; return the seconds it took."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.05)
    return time.monotonic() - started


class Serving:
    """One `pageray serve` process with the Ray cluster it started.

    Without a model, the options say what is served.
    """

    def __init__(self, model: str | Path | None, *options: str, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = [sys.executable, "-m", "deployments.cli", "serve"]
        command += [] if model is None else [str(model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *options]
        # Ray leaves its session in the temporary folder. Not tmp_path: sockets have short names.
        self.folder = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(self.folder)},
            )
        self.client = httpx2.Client(base_url=self.url, timeout=120)

    def wait_ready(self) -> None:
        """Wait for the first replica."""

        def ready() -> bool:
            assert self.process.poll() is None, f"serve ended:\n{self.log.read_text()}"
            try:
                return self.client.get("/ready").status_code == 200
            except httpx2.TransportError:
                return False

        try:
            wait_until(ready, START_TIMEOUT_S, "ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()}") from error

    def processes(self) -> list[psutil.Process]:
        """Everything it started and that still runs."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def listening_ports(self) -> set[int]:
        """TCP ports its processes listen on; several processes can share one."""
        ports: set[int] = set()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # ended since it was listed
                connections = process.net_connections("tcp")
                listening = (each for each in connections if each.status == psutil.CONN_LISTEN)
                ports.update(connection.laddr.port for connection in listening)
        return ports

    def niceness(self) -> int:
        """Niceness of the command itself."""
        return psutil.Process(self.process.pid).nice()

    def log_records(self, deployment: str) -> list[dict[str, Any]]:
        """What the replicas of a deployment have logged, as JSON."""
        logs = self.folder.glob(f"ray/session_2*/logs/serve/replica_*{deployment}*.log")
        return [json.loads(line) for log in logs for line in log.read_text().splitlines()]

    def titled(self, prefix: str) -> list[psutil.Process]:
        """Those of its processes whose title begins like this; Ray's actors set theirs."""
        return [process for process in self.processes() if _title(process).startswith(prefix)]

    def ranks(self) -> list[psutil.Process]:
        """The processes that run a model."""
        return self.titled("ray::Worker")

    def models(self) -> list[dict[str, Any]]:
        """What /status says of each model."""
        found: list[dict[str, Any]] = self.client.get("/status").json()["models"]
        return found

    def replicas(self) -> list[dict[str, object]]:
        """What it says of each replica."""
        return [replica for model in self.models() for replica in model["replicas"]]

    def wait_replicas(self, count: int) -> None:
        """Wait until so many replicas are there."""

        def all_there() -> bool:
            try:
                return len(self.replicas()) == count
            except httpx2.TransportError:  # HAProxy starts anew while deployments come up
                return False

        wait_until(all_there, START_TIMEOUT_S, f"{count} replicas")

    def num_used_blocks(self) -> int:
        """Blocks held by requests over all replicas."""
        return sum(
            int(str(replica["num_blocks"]))
            - int(str(replica["num_free_blocks"]))
            - int(str(replica["num_evictable_blocks"]))
            for replica in self.replicas()
        )

    def num_requests(self) -> int:
        """Sequences that run or wait over all replicas."""
        return sum(
            int(str(replica[name]))
            for replica in self.replicas()
            for name in ("num_running", "num_waiting")
        )

    def num_open(self) -> int:
        """Sequences that run or wait on replicas, and requests that wait for one."""
        models = self.client.get("/status").json()["models"]
        held = sum(int(model["admission"]["num_held_requests"]) for model in models)
        return self.num_requests() + held

    def stop(self) -> None:
        """Ctrl-C, then make sure that nothing is left."""
        self.client.close()
        started = self.processes() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        finally:
            _, alive = psutil.wait_procs(started, timeout=10)
            for process in alive:
                process.kill()
            shutil.rmtree(self.folder)
        assert not alive, f"left behind: {alive}\n{self.log.read_text()}"
        ending = self.log.read_text().partition("Draining: ")[2]
        assert "(raylet)" not in ending, f"words of Ray at the end: {ending}"


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # ended since it was listed
        return ""
