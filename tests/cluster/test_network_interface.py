"""Which interface the ranks of a group on several nodes talk through."""

import os
import subprocess
import sys

import pytest

from cluster.network_interface import find_interface

SHOW = """
import ctypes
from cluster.network_interface import use_interface_of
use_interface_of("127.0.0.1")
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(*(getenv(name).decode() for name in (b"GLOO_SOCKET_IFNAME", b"NCCL_SOCKET_IFNAME")))
"""


def test_an_interface_is_found_by_its_address() -> None:
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("255.255.255.255") is None
    assert find_interface("localhost") is None


@pytest.mark.parametrize(
    ("given", "used"), [({}, "lo lo"), ({"NCCL_SOCKET_IFNAME": "ib0"}, "lo ib0")]
)
def test_gloo_and_nccl_use_it_unless_the_process_was_told_otherwise(
    given: dict[str, str], used: str
) -> None:
    rest = {name: value for name, value in os.environ.items() if "SOCKET_IFNAME" not in name}
    shown = subprocess.run(
        [sys.executable, "-c", SHOW], env={**rest, **given}, capture_output=True, check=True
    )
    assert shown.stdout.decode().strip() == used
