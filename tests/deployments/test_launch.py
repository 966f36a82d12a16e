"""What a start refuses before it starts anything."""

import io
import socket
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from rich.console import Console

from deployments import launch
from deployments.args import AppArgs
from deployments.launch_options import LaunchOptions
from engine.errors import InvalidConfig


def test_a_cluster_that_serves_something_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def start(*args: Any) -> nullcontext[None]:
        started.append(args)
        return nullcontext()

    status = SimpleNamespace(applications={"theirs": object()})
    monkeypatch.setattr(launch, "_ray", lambda *_: nullcontext())
    monkeypatch.setattr(serve, "status", lambda: status)
    monkeypatch.setattr(launch, "_application", start)
    options = LaunchOptions(address="10.0.0.1:6379")
    console = Console(file=io.StringIO())
    with pytest.raises(InvalidConfig, match="serves something already"):
        launch.serving(AppArgs(), options, console).__enter__()
    assert not started


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])  # noqa: S104  any address
def test_a_port_that_is_taken_is_refused_at_once(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = LaunchOptions(host=host, port=taken.getsockname()[1])
        with pytest.raises(InvalidConfig, match=f"port {options.port}: ") as error:
            launch.serve_until_interrupted(AppArgs(), options, Console(file=io.StringIO()))
    assert "--port" in error.value.fix


def test_a_host_that_is_not_here_is_refused_at_once() -> None:
    options = LaunchOptions(host="192.0.2.77", port=8000)
    with pytest.raises(InvalidConfig, match=r"192\.0\.2\.77"):
        launch.serve_until_interrupted(AppArgs(), options, Console(file=io.StringIO()))
