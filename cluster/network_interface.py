"""Tells gloo and NCCL which network interface leads to the other nodes of a group.

gloo would take the one that the machine's name resolves to, which on many machines is the
loopback, and NCCL the first one it finds. Ray knows the address under which its nodes meet.
"""

import ctypes
import os

import psutil

_SETTINGS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def use_interface_of(address: str) -> None:
    """Let gloo and NCCL of this process use the interface with `address`, unless it was started
    with a choice of its own. Nothing where no interface has it."""
    name = find_interface(address)
    if name is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for setting in _SETTINGS:
        # They read the environment of C. 0: what is there stays.
        if libc.setenv(setting.encode(), name.encode(), 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def find_interface(address: str) -> str | None:
    """Name of the network interface with this address, IPv4 or IPv6; None: there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        # IPv6 addresses of one link say of which, after a %.
        if any(address == each.address.partition("%")[0] for each in addresses):
            return name
    return None
