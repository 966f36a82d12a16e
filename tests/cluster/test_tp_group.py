"""How a group notices that one of its ranks is of no use any more."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import tp_group
from cluster.leader import join_group
from cluster.tp_group import TPGroup
from engine.config import EngineConfig
from engine.parallel import TensorParallel


class FakeMethod:
    """A method of an actor."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    async def remote(self) -> Any:
        answer = self._answer()
        if answer is None:
            await asyncio.Event().wait()
        return answer


class FakeWorker:
    """An actor that is alive; its pings tell what they are told to."""

    def __init__(self, *pings: float | None) -> None:
        left = list(pings)
        self.watch = FakeMethod(lambda: None)
        self.ping = FakeMethod(lambda: left.pop(0) if left else 0.0)


def lost(*workers: FakeWorker) -> str:
    """Why the group is lost."""
    group = TPGroup(workers, description=None)  # type: ignore[arg-type]
    return asyncio.run(asyncio.wait_for(group.wait_lost(), timeout=60))


@pytest.fixture(autouse=True)
def quick_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tp_group, "PING_PERIOD_S", 0.001)
    monkeypatch.setattr(tp_group, "PING_TIMEOUT_S", 0.05)


def test_a_collective_that_hangs_shows_in_the_steps_of_rank_0() -> None:
    hung = FakeWorker(0.0, 0.0, 0.5)
    assert lost(hung, FakeWorker()) == "the engine has work, and its step is late by 0.5 s"


def test_a_rank_that_is_stopped_does_not_answer() -> None:
    assert "rank 1 has not answered" in lost(FakeWorker(), FakeWorker(0.0, None))


def test_ranks_meet_on_a_device_with_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses to tie a group to "cuda" alone."""
    met: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", met.append)
    monkeypatch.setattr(TensorParallel, "join", lambda *arguments: met.append(arguments[-1]))
    join_group(
        EngineConfig(model_path=Path("unused"), model_name="fake", device="cuda"), 1, "unused"
    )
    assert met == [torch.device("cuda", 0)] * 2
