"""What Ray finds in its environment when a command starts it: settings, files and ports."""

import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from deployments.launch_options import LaunchOptions
from deployments.serve_environment import haproxy_environment, serve_environment

# Below those that kernels hand out by themselves: HAProxy binds them only seconds later.
_PORTS: Final = range(20_000, 30_000)


def ray_environment(start: LaunchOptions, folder: Path) -> dict[str, str]:
    """What a cluster of our own needs, with HAProxy's files in the folder; who joins one has it."""
    environment = serve_environment()
    if start.address is None:
        environment |= haproxy_environment(folder, *islice(_free_ports(), 3))
    return environment


def socket_base() -> str | None:
    """Where to make that folder; None: in the temporary folder.

    HAProxy's sockets lie two levels below, under a name of 56 characters, and the path of a socket
    may have 97: a long TMPDIR would not do.
    """
    base = tempfile.gettempdir()
    return "/tmp" if len(base) > len("/tmp") + 6 and Path("/tmp").is_dir() else None  # noqa: S108


def _free_ports() -> Iterator[int]:
    for port in random.sample(_PORTS, len(_PORTS)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            yield port
