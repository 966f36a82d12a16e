"""Listening ports of a process are found however busy it is."""

import os
import socket
import threading

import psutil

from tests.chaos.roles import listening_ports


def test_ports_are_found_while_files_come_and_go() -> None:
    is_over = threading.Event()

    def open_and_close() -> None:
        while not is_over.is_set():
            for descriptor in [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]:
                os.close(descriptor)

    busy = threading.Thread(target=open_and_close)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        busy.start()
        try:
            port = listening.getsockname()[1]
            found = [listening_ports(psutil.Process(os.getpid())) for _ in range(100)]
        finally:
            is_over.set()
            busy.join()
    assert all(port in ports for ports in found)
