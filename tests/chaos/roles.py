"""Which process of a cluster does what, told by the titles that Ray gives its processes."""

import os
from collections.abc import Iterable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import psutil

TCP_LISTEN = "0A"


class Role(StrEnum):
    """What a process is there for."""

    RANK = "rank"
    REPLICA = "replica"
    """The supervisor of a group of ranks."""
    FRONTEND = "frontend"
    CONTROLLER = "controller"
    """Serve's."""
    PROXY = "proxy"
    """The actor that runs HAProxy on a host."""
    HAPROXY = "haproxy"
    RAYLET = "raylet"
    GCS = "gcs"


ACTOR_TITLES = {
    Role.RANK: "ray::Worker",
    Role.REPLICA: "ray::ServeReplica:pageray:Replica-",
    Role.FRONTEND: "ray::ServeReplica:pageray:Frontend",
    Role.CONTROLLER: "ray::ServeController",
    Role.PROXY: "ray::HAProxyManager",
}
"""How the titles of Ray's actors begin; the method that runs at present follows."""
PROGRAMS = {Role.HAPROXY: "haproxy", Role.RAYLET: "raylet", Role.GCS: "gcs_server"}
"""Names of files."""


def select(processes: Iterable[psutil.Process], role: Role) -> list[psutil.Process]:
    """Those that have a role."""
    return [process for process in processes if _has(process, role)]


def listening_ports(process: psutil.Process) -> set[int]:
    """TCP ports that a process listens on, on whatever host; psutil would look on this one."""
    folder = Path(f"/proc/{process.pid}")
    files = set()
    try:
        for file in (folder / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                files.add(os.readlink(file))
        tables = [(folder / "net" / name).read_text() for name in ("tcp", "tcp6")]
    except OSError:  # ended since it was listed
        return set()
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    return {
        int(row[1].rpartition(":")[2], 16)
        for row in rows
        if row[3] == TCP_LISTEN and f"socket:[{row[9]}]" in files
    }


def _has(process: psutil.Process, role: Role) -> bool:
    try:
        command = process.cmdline()
    except psutil.NoSuchProcess:  # ended since it was listed
        return False
    if role in PROGRAMS:
        return bool(command) and command[0].rpartition("/")[2] == PROGRAMS[role]
    return " ".join(command).startswith(ACTOR_TITLES[role])
