"""Tells gloo and NCCL which network interface leads to the other nodes of a group.

gloo would take the one that the machine's name resolves to, which on many machines is the
loopback, and NCCL the first one it finds. Ray knows the address under which its nodes meet.
"""

import ctypes
import fcntl
import os
import socket
import struct

_SETTINGS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_SIOCGIFCONF = 0x8912
_ENTRY = struct.Struct("16s4x4s16x")
"""Linux' ifreq: the name, then family and port of a sockaddr_in and its IPv4 address."""
_MAX_ENTRIES = 256


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
    """Name of the network interface with this IPv4 address; None: there is none."""
    try:
        wanted = socket.inet_aton(address)
    except OSError:  # IPv6 or a name
        return None
    buffer = ctypes.create_string_buffer(_MAX_ENTRIES * _ENTRY.size)
    request = struct.pack("ixxxxP", len(buffer), ctypes.addressof(buffer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFCONF, request)
        except OSError:  # not Linux
            return None
    (num_bytes,) = struct.unpack_from("i", answer)
    for raw_name, raw_address in _ENTRY.iter_unpack(buffer.raw[:num_bytes]):
        if raw_address == wanted:
            # An address may have a label of its own after the name: eth0:1.
            found: str = raw_name.split(b"\0")[0].decode().split(":")[0]
            return found
    return None
