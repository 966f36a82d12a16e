"""Tokens to pieces of text: endings, stop strings and sources that break their word."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from cluster.decision import Decision
from cluster.request_times import RequestTimes
from cluster.snapshot import AdmissionSnapshot, ReplicaSnapshot
from deployments.completion import Completion, Piece
from deployments.metrics import HttpMetrics
from engine.errors import ReplicaLost
from engine.output import FinishReason, TokenOutput
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from tests.deployments.fake_token_source import FakeTokenSource


class ScriptedSource:
    """Yields exactly these outputs."""

    def __init__(self, outputs: Sequence[TokenOutput]) -> None:
        self.outputs = outputs
        self.aborted: list[tuple[str, int]] = []

    async def generate(
        self, request: GenerateRequest, times: RequestTimes
    ) -> AsyncGenerator[TokenOutput]:
        for output in self.outputs:
            yield output

    async def abort(self, request_id: str, choice_index: int) -> None:
        self.aborted.append((request_id, choice_index))

    def snapshots(self) -> list[ReplicaSnapshot]:
        return []

    def admission(self) -> AdmissionSnapshot:
        return AdmissionSnapshot(num_placements={})

    def decisions(self, request_id: str) -> list[Decision]:
        return []


def completion(
    source: ScriptedSource | FakeTokenSource, tokenizer: Tokenizer, n: int = 1, stop: str = ""
) -> Completion:
    params = SamplingParams(n=n, stop=(stop,) if stop else ())
    request = GenerateRequest(request_id="r", prompt_token_ids=[5], params=params)
    return Completion(source, tokenizer, [request], HttpMetrics({"tiny": list}).of("tiny"), 0.0)


def run(run_completion: Completion) -> list[Piece]:
    async def collect() -> list[Piece]:
        async with aclosing(run_completion.pieces()) as pieces:
            return [piece async for piece in pieces]

    return asyncio.run(collect())


def test_source_that_ends_too_early_is_a_lost_replica(tokenizer: Tokenizer) -> None:
    source = ScriptedSource([TokenOutput("r", 0, 0, [80], finish_reason=FinishReason.STOP)])
    with pytest.raises(ReplicaLost):
        run(completion(source, tokenizer, n=2))
    with pytest.raises(ReplicaLost):
        run(completion(ScriptedSource([]), tokenizer))


def test_half_a_character_comes_out_with_the_end(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("🗼")[0]
    outputs = [
        TokenOutput("r", 0, 0, [half]),
        TokenOutput("r", 0, 1, [], None, FinishReason.LENGTH),
    ]
    pieces = run(completion(ScriptedSource(outputs), tokenizer))
    assert [piece.text for piece in pieces] == ["", "\N{REPLACEMENT CHARACTER}"]
    assert pieces[-1].finish_reason is FinishReason.LENGTH


def test_stop_string_completed_by_the_end_counts_as_stop(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("🗼")[0]
    source = ScriptedSource([TokenOutput("r", 0, 0, [half], None, FinishReason.LENGTH)])
    [piece] = run(completion(source, tokenizer, stop="\N{REPLACEMENT CHARACTER}"))
    assert (piece.text, piece.finish_reason) == ("", FinishReason.STOP)
    assert not source.aborted  # the engine has ended it already


def test_what_the_engine_made_after_a_stop_string_is_dropped(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a. b c")
    first = [TokenOutput("r", 0, i, [token_id]) for i, token_id in enumerate(token_ids)]
    other = TokenOutput("r", 1, 0, token_ids, finish_reason=FinishReason.LENGTH)
    aborted = TokenOutput("r", 0, 9, [], finish_reason=FinishReason.ABORT)
    source = ScriptedSource([*first, aborted, other])
    pieces = run(completion(source, tokenizer, n=2, stop="."))
    texts = ["".join(p.text for p in pieces if p.choice_index == i) for i in (0, 1)]
    assert texts == ["a", "a"]
    assert source.aborted == [
        ("r", 0),
    ]
    assert [p.finish_reason for p in pieces if p.finish_reason] == [FinishReason.STOP] * 2
