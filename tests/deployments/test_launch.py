"""What a start refuses before it starts Ray."""

import io
import socket

import pytest
from rich.console import Console

from deployments.args import AppArgs
from deployments.launch import serve_until_interrupted
from deployments.launch_options import LaunchOptions
from engine.errors import InvalidConfig


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])  # noqa: S104  any address
def test_a_port_that_is_taken_is_refused_at_once(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = LaunchOptions(host=host, port=taken.getsockname()[1])
        with pytest.raises(InvalidConfig, match=f"port {options.port}: ") as error:
            serve_until_interrupted(AppArgs(), options, Console(file=io.StringIO()))
    assert "--port" in error.value.fix


def test_a_host_that_is_not_here_is_refused_at_once() -> None:
    options = LaunchOptions(host="192.0.2.77", port=8000)
    with pytest.raises(InvalidConfig, match=r"192\.0\.2\.77"):
        serve_until_interrupted(AppArgs(), options, Console(file=io.StringIO()))
