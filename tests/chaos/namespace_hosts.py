"""Hosts for tests: network namespaces of this machine, joined by a bridge.

Each host has its own address, ports, loopback and folder; processes and CPUs are the machine's.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.hosts import Hosts

EVERYWHERE = "0.0.0.0"  # noqa: S104  each host is a network of its own
_IP = shutil.which("ip") or "ip"
MAX_RUNS = 200
"""Runs that may exist at once on this machine; each takes a subnet of 10.77.0.0/16."""
RUNS = Path("/tmp")
"""Where runs have their folders. Not the temporary folder: the path of a socket may have 97
characters, and Ray's have most of them."""


def can_make_hosts() -> bool:
    """Whether this process may make network namespaces here."""
    return os.geteuid() == 0 and shutil.which(_IP) is not None


class NamespaceHosts(Hosts):
    """See Hosts; host 0 is the machine itself. A cut host reaches itself alone."""

    can_cut = True

    def __init__(self, num_hosts: int, num_others: int = 0) -> None:
        """Make them. Raises AssertionError where that is not allowed."""
        super().__init__(num_hosts, listen_address=EVERYWHERE, ray_port=6379, http_port=8000)
        self._names: dict[int, str] = {}
        self._subnet = _make_bridge()
        self.folder = RUNS / self._bridge
        """Of this run; each host sees a folder of its own as `private_folder`."""
        try:
            self.private_folder.mkdir(parents=True)
            # Nobody answers names here: whoever looks for one is to hear so at once.
            self._resolver.write_text("nameserver 127.0.0.1\n")
            for host in range(1, num_hosts + num_others + 1):
                self._make(host)
        except BaseException:
            self.close()
            raise

    @property
    def private_folder(self) -> Path:
        """One path, behind which every host has a folder of its own."""
        return self.folder / "own"

    @property
    def names(self) -> list[str]:
        """Of the namespaces, and of the bridge."""
        return [*self._names.values(), self._bridge]

    def address(self, host: int) -> str:
        """Where others reach a host; of host 0 the machine's."""
        return f"10.77.{self._subnet}.{host or 254}"

    def folder_of(self, host: int) -> Path:
        """What the host sees as `private_folder`."""
        return self.folder / f"host-{host}"

    def ray_options(self, host: int) -> list[str]:
        """See Hosts."""
        return ["--metrics-export-port=8080"]

    def start(
        self, host: int, command: Sequence[str], environment: Mapping[str, str], **settings: Any
    ) -> "subprocess.Popen[str]":
        """Start a command on a host; settings are Popen's."""
        # `ip netns exec` gives it a mount namespace of its own, so the mount is the host's alone.
        mount = 'mount --bind "$1" "$2" && mount --bind "$3" /etc/resolv.conf && shift 3'
        script = f'{mount} && exec "$@"'
        paths = [str(self.folder_of(host)), str(self.private_folder), str(self._resolver)]
        return subprocess.Popen(
            [_IP, "netns", "exec", self._names[host], "sh", "-c", script, "sh", *paths, *command],
            env=dict(environment),
            text=True,
            start_new_session=True,
            **settings,
        )

    def processes(self, host: int) -> list[psutil.Process]:
        """Everything that runs on a host."""
        found = []
        for pid in ip("netns", "pids", self._names[host]).split():
            try:
                found.append(psutil.Process(int(pid)))
            except psutil.NoSuchProcess:  # ended since it was listed
                continue
        return found

    def cut(self, host: int) -> None:
        """Take a host off the net."""
        ip("link", "set", self._port(host), "down")

    def heal(self, host: int) -> None:
        """Put it back."""
        ip("link", "set", self._port(host), "up")

    def close(self) -> None:
        """End what runs on the hosts and remove them."""
        for host in list(self._names):
            self.end_processes(host)
            # A closing connection may keep the cable for minutes: it goes first, if it is there.
            ip("-n", self._names[host], "link", "del", "eth0", check=False)
            ip("netns", "del", self._names.pop(host))
        ip("link", "del", self._bridge)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _resolver(self) -> Path:
        return self.folder / "resolv.conf"

    @property
    def _bridge(self) -> str:
        return f"pageray{self._subnet}"

    def _port(self, host: int) -> str:
        return f"pageray{self._subnet}-{host}"

    def _make(self, host: int) -> None:
        name, port = self._port(host), self._port(host)
        self.folder_of(host).mkdir()
        ip("netns", "add", name)
        self._names[host] = name
        ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", port, "master", self._bridge, "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        # Ray finds its own address by a route to the world, which leads nowhere from here.
        ip("-n", name, "route", "add", "default", "via", self.address(0))


def _make_bridge() -> int:
    """Make the first bridge that nobody has; return the number of its subnet."""
    for subnet in range(1, MAX_RUNS):
        name = f"pageray{subnet}"
        made = subprocess.run(
            [_IP, "link", "add", name, "type", "bridge"], capture_output=True, check=False
        )
        if made.returncode == 0:
            ip("addr", "add", f"10.77.{subnet}.254/24", "dev", name)
            ip("link", "set", name, "up")
            return subnet
    raise AssertionError(f"no bridge can be made here: {made.stderr.decode()}")


def ip(*arguments: str, check: bool = True) -> str:
    """Run iproute2's command; return its output. Raises AssertionError if it fails."""
    done = subprocess.run([_IP, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
