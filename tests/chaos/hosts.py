"""What a cluster for tests runs on: hosts that can be lost."""

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

import psutil

END_TIMEOUT_S = 20.0


class Hosts(ABC):
    """Hosts 1 to `num_hosts`; a context manager. Then come others, which iterating leaves out, for
    what is no part of the cluster. What runs on a host ends with `close`.
    """

    can_cut: ClassVar[bool]
    """Whether a host can be taken off the net."""
    folder: Path
    """Of all together."""

    def __init__(
        self, num_hosts: int, *, listen_address: str, ray_port: int, http_port: int
    ) -> None:
        """Take how many, where the endpoints listen, and the ports of Ray's head and of theirs."""
        self._num_hosts = num_hosts
        self.listen_address = listen_address
        self.ray_port = ray_port
        self.http_port = http_port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[int]:
        return iter(range(1, self._num_hosts + 1))

    @property
    @abstractmethod
    def private_folder(self) -> Path:
        """What programs take for their temporary folder."""

    @abstractmethod
    def address(self, host: int) -> str:
        """Where others reach a host."""

    @abstractmethod
    def folder_of(self, host: int) -> Path:
        """Where the temporary files of a host are."""

    @abstractmethod
    def start(
        self, host: int, command: Sequence[str], environment: Mapping[str, str], **settings: Any
    ) -> "subprocess.Popen[str]":
        """Start a command on a host; settings are Popen's."""

    @abstractmethod
    def processes(self, host: int) -> list[psutil.Process]:
        """Everything that runs on a host."""

    @abstractmethod
    def cut(self, host: int) -> None:
        """Take a host off the net."""

    @abstractmethod
    def heal(self, host: int) -> None:
        """Put it back."""

    @abstractmethod
    def close(self) -> None:
        """End what runs on the hosts and remove them."""

    @property
    def endpoints(self) -> dict[int, str]:
        """Where clients find the service, on every host that has a place of its own for them."""
        return {host: f"http://{self.address(host)}:{self.http_port}" for host in self}

    def ray_options(self, _host: int) -> list[str]:
        """What `ray start` has to be told there."""
        return []

    def run(
        self, host: int, command: Sequence[str], environment: Mapping[str, str], timeout_s: float
    ) -> str:
        """Run a command on a host; return its output. Raises AssertionError if it fails."""
        output = self.folder_of(host) / "command.log"
        with output.open("w") as file:  # no pipe: daemons that it starts would hold it open
            process = self.start(host, command, environment, stdout=file, stderr=file)
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        text = output.read_text()
        assert code == 0, f"{' '.join(command)} ended with {code} on host {host}:\n{text}"
        return text

    def end_processes(self, host: int) -> None:
        """SIGKILL everything on a host."""
        deadline = time.monotonic() + END_TIMEOUT_S
        while processes := self.processes(host):
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=1)
            assert time.monotonic() < deadline, f"will not end: {processes}"
