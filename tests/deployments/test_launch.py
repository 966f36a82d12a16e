"""What a service of a batch's own must not do to others."""

import io
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
        launch.serving_alone(AppArgs(), options, console).__enter__()
    assert not started
