"""A server under test: started, awaited, and ended with everything it started."""

import http.client
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.benchmarks import process_tree
from tests.benchmarks.failure import PeerFailed
from tests.integration.serving import free_port

HOST = "127.0.0.1"
POLL_S = 0.1
START_TIMEOUT_S = 400.0
LOG_TAIL = 2000


class Server:
    """One server process. `{port}` in its command is replaced."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], ready_path: str
    ) -> None:
        self.port = free_port()
        self.start_s = 0.0
        self._command = [part.replace("{port}", str(self.port)) for part in command]
        self._environment = environment
        self._ready_path = ready_path

    def __enter__(self) -> "Server":
        # Whatever it leaves in the temporary folder goes with it. Sockets have short names.
        self._folder = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))
        self._log = self._folder / "log"
        started = time.perf_counter()
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self._environment, "TMPDIR": str(self._folder)},
            )
        try:
            self._wait_ready(started)
        except BaseException:
            self._stop()
            raise
        self.start_s = time.perf_counter() - started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """Root of its process tree."""
        return self.process.pid

    def log_tail(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-LOG_TAIL:]

    def _wait_ready(self, started: float) -> None:
        while not self._is_ready():
            if self.process.poll() is not None:
                raise PeerFailed(f"ended while it started:\n{self.log_tail()}")
            if time.perf_counter() - started > START_TIMEOUT_S:
                raise PeerFailed(f"not ready within {START_TIMEOUT_S:g} s:\n{self.log_tail()}")
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", self._ready_path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        try:
            process_tree.end(self.process)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
