"""Hosts for tests where root is not given: Ray nodes that share this machine and its loopback.

What belongs to a host is told by a variable in its environment, which children inherit. Knows
little of Ray: the ports that nodes of one machine must not share.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from tests.chaos.hosts import Hosts
from tests.integration.serving import free_port

_ADDRESS: Final = "127.0.0.1"
_MARK: Final = "PAGERAY_TEST_HOST"


class LoopbackHosts(Hosts):
    """See Hosts. No host can be cut off, and they share one endpoint, that of host 1."""

    can_cut = False

    def __init__(self, num_hosts: int, num_others: int = 0) -> None:
        super().__init__(
            num_hosts, listen_address=_ADDRESS, ray_port=free_port(), http_port=free_port()
        )
        # Not the temporary folder: the path of a socket may have 97 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))
        self.private_folder.mkdir()
        self._all_hosts = range(1, num_hosts + num_others + 1)
        for host in self._all_hosts:
            self.folder_of(host).mkdir()

    @property
    def endpoints(self) -> dict[int, str]:
        """See Hosts."""
        return {1: f"http://{_ADDRESS}:{self.http_port}"}

    @property
    def private_folder(self) -> Path:
        """For what runs on no host."""
        return self.folder / "own"

    def address(self, _host: int) -> str:
        """Where others reach a host."""
        return _ADDRESS

    def folder_of(self, host: int) -> Path:
        """The host's temporary folder."""
        return self.folder / f"host-{host}"

    def ray_options(self, host: int) -> list[str]:
        """See Hosts."""
        options = ["--min-worker-port=0", "--max-worker-port=0"]
        options.append(f"--dashboard-agent-listen-port={free_port()}")
        return [*options, f"--ray-client-server-port={free_port()}"] if host == 1 else options

    def start(
        self, host: int, command: Sequence[str], environment: Mapping[str, str], **settings: Any
    ) -> "subprocess.Popen[str]":
        """Start a command on a host; settings are Popen's."""
        own = {"TMPDIR": str(self.folder_of(host)), _MARK: self._mark(host)}
        return subprocess.Popen(
            command, env={**environment, **own}, text=True, start_new_session=True, **settings
        )

    def processes(self, host: int) -> list[psutil.Process]:
        """Everything that runs on a host."""
        mark = f"{_MARK}={self._mark(host)}".encode()
        found = []
        for pid in psutil.pids():
            try:
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if mark in variables:
                    found.append(psutil.Process(pid))
            except (OSError, psutil.NoSuchProcess):  # ended, or not ours
                continue
        return found

    def cut(self, host: int) -> None:
        """They share one loopback."""
        raise NotImplementedError

    def heal(self, host: int) -> None:
        """They share one loopback."""
        raise NotImplementedError

    def close(self) -> None:
        """End what runs on the hosts and remove them."""
        for host in self._all_hosts:
            self.end_processes(host)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mark(self, host: int) -> str:
        return f"{self.folder.name}-{host}"
