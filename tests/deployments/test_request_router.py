"""The request router: where Ray Serve sends a request that admission has placed."""

import asyncio
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.request_router import PendingRequest

from cluster.board import Board
from cluster.boards import find_board
from cluster.request_need import RequestNeed
from deployments.request_router import KVBlockRouter
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.cluster.token_fakes import make_snapshot

REQUEST = GenerateRequest(
    request_id="r.0", prompt_token_ids=[1] * 64, params=SamplingParams(max_tokens=8)
)


class Routed:
    """A router without Serve, and the board of two replicas that it finds."""

    def __init__(self) -> None:
        name = uuid.uuid4().hex
        self.board: Board = find_board(name)
        self.board.set_members({"a": {}, "b": {}})
        for replica_id in ("a", "b"):
            self.board.update(replica_id, make_snapshot())
        self._router = KVBlockRouter.__new__(KVBlockRouter)
        self._router.initialize_state(model_name=name, block_size=16, policy="kv")

    def route(self, *replica_ids: str) -> list[str]:
        """Return the replicas that the request may go to."""
        replicas: list[Any] = [
            SimpleNamespace(replica_id=SimpleNamespace(unique_id=replica_id))
            for replica_id in replica_ids
        ]

        async def choose() -> list[list[Any]]:
            arguments: Any = {"args": ("frontend", REQUEST), "kwargs": {}, "metadata": None}
            return await self._router.choose_replicas(replicas, PendingRequest(**arguments))

        return [replica.replica_id.unique_id for rank in asyncio.run(choose()) for replica in rank]


@pytest.fixture
def routed() -> Iterator[Routed]:
    yield (routed := Routed())
    assert routed.board.num_requests == 0


def test_a_request_goes_where_admission_placed_it_and_elsewhere_once_that_is_gone(
    routed: Routed,
) -> None:
    chosen = routed.board.choose(RequestNeed.of(REQUEST))
    assert routed.route("a", "b") == [chosen]
    other = "b" if chosen == "a" else "a"
    routed.board.mark_lost(str(chosen))
    assert routed.route("a", "b") == [other]
    assert routed.board.placement("r.0") == other
    routed.board.release("r.0")


def test_a_request_that_is_over_goes_where_that_is_known_and_stays_out_of_the_ledger(
    routed: Routed,
) -> None:
    chosen = str(routed.board.choose(RequestNeed.of(REQUEST)))
    routed.board.release("r.0")
    assert routed.route("a", "b") == [chosen]
    assert routed.route("b" if chosen == "a" else "a") == []
