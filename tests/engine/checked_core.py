"""An engine core over a simulated cache, whose every step and output is checked.

The executor (tests/fakes.py) checks each read of the cache. This checks the pool before and after
each step and compares all output with the oracle, which knows neither batches nor blocks.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.batch import Batch
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import InvalidRequest, Overloaded
from engine.output import FinishReason, TokenOutput
from engine.request import GenerateRequest, Request, RequestStatus
from tests.fakes import FakeClock, FakeExecutor, expect_short_outputs

VOCAB = 40
EOS = frozenset({3})
# Preemption computes tokens again, but only so often.
MAX_WASTE = 5


@dataclass
class Choice:
    """What one sequence has sent so far, and what it must send in all."""

    expected: list[int]
    cost: int
    """Tokens that its computation takes where nothing is lost."""
    received: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class CheckedCore:
    """Clients, engine and checks; any check that fails is an AssertionError."""

    def __init__(
        self,
        *,
        num_blocks: int,
        max_model_len: int,
        num_host_blocks: int = 0,
        is_hopeful: bool = False,
        is_overlapping: bool = False,
        move_s: float = 0.0001,
        **settings: Any,
    ) -> None:
        self.config = EngineConfig(model_path=Path("unused"), model_name="fake", **settings)
        self.executor = FakeExecutor(
            num_blocks,
            self.config.block_size,
            vocab_size=VOCAB,
            num_host_blocks=num_host_blocks,
            on_execute=self._check_batch,
            is_overlapping=is_overlapping,
        )
        self.clock = FakeClock()
        self.core = EngineCore(
            self.config,
            self.executor,
            max_model_len=max_model_len,
            eos_token_ids=EOS,
            vocab_size=VOCAB,
            clock=self.clock,
        )
        if is_hopeful:
            expect_short_outputs(self.core._scheduler._lengths)
        self.pool = self.core._pool
        self.capacity = min(max_model_len, num_blocks * self.config.block_size)
        self.choices: dict[tuple[str, int], Choice] = {}
        self._requests: set[Request] = set()
        self._move_s = move_s

    @property
    def live(self) -> list[tuple[str, int]]:
        """Sequences that have not ended, in order of arrival."""
        return [name for name, choice in self.choices.items() if choice.finish_reason is None]

    def add(self, request: GenerateRequest) -> bool:
        """Send a request; whether it was taken, which must not surprise."""
        n, max_tokens = request.params.n, request.params.max_tokens
        room = self.capacity - len(request.prompt_token_ids)
        is_possible = bool(request.prompt_token_ids) and room >= (max_tokens or 1)
        num_waiting = self.core.snapshot().num_waiting
        try:
            self.core.add(request)
        except InvalidRequest:
            assert not is_possible
            return False
        except Overloaded:
            assert num_waiting + n > self.config.max_num_waiting
            return False
        assert is_possible
        self.expect(request)
        return True

    def expect(self, request: GenerateRequest) -> None:
        """Note what a request that was taken must bring."""
        prompt = request.prompt_token_ids
        stops = frozenset() if request.params.ignore_eos else EOS
        limit = request.params.max_tokens or self.capacity - len(prompt)
        for index in range(request.params.n):
            expected = self.executor.model.generate(request, index, limit, stops)
            choice = Choice(expected, len(prompt) + len(expected))
            self.choices[request.request_id, index] = choice

    def abort(self, request_id: str, index: int | None) -> None:
        """End a request or one choice of it; it has ended then."""
        self.receive(self.core.abort(request_id, index))
        for (other_id, other_index), choice in self.choices.items():
            if other_id == request_id and index in (None, other_index):
                assert choice.finish_reason is not None

    def step(self) -> None:
        """Run one step."""
        self.receive(self.core.step().outputs)
        self.check_blocks()

    def run_until_idle(self) -> None:
        """Nothing starves: the first by rank gets on, whatever the others do."""
        for _ in range(MAX_WASTE * sum(self.choices[name].cost for name in self.live)):
            if not self.core.has_work:
                break
            self.step()
        assert not self.core.has_work
        self.check_ended()

    def check_ended(self) -> None:
        """Every sequence has ended, and nobody holds anything."""
        assert not self.live
        self.check_blocks()
        assert self.pool.num_usable_blocks == self.pool.num_blocks
        assert not self.core._live
        assert not self.core._scheduler._tables._coming
        assert self.core.snapshot().num_queued_prefill_tokens == 0

    def check_queue(self) -> None:
        """The tokens that wait for computation are counted, and what is announced is to come."""
        scheduler = self.core._scheduler
        gaps = [r.num_tokens - r.num_computed_tokens for r in scheduler._running.prefilling]
        assert all(r.num_tokens - r.num_computed_tokens == 1 for r in scheduler._running.decoding)
        known = sum(r.num_tokens for r in scheduler._waiting) + sum(gaps)
        assert self.core.snapshot().num_queued_prefill_tokens == known
        for block_hash, maker in scheduler._tables._coming.items():
            assert maker.status is RequestStatus.RUNNING
            done = maker.num_computed_tokens // self.config.block_size
            assert block_hash in maker.block_hashes[done:]

    def check_blocks(self) -> None:
        """Each block is held by exactly those in whose tables it stands."""
        holders: Counter[int] = Counter()
        # One that was let in by a plan that had to wait is in no batch yet.
        self._requests.update(self.core._scheduler._running)
        for request in self._requests:
            assert len(set(request.block_ids)) == len(request.block_ids)
            assert request.status is RequestStatus.RUNNING or not request.block_ids
            holders.update(request.block_ids)
        self._requests = {r for r in self._requests if r.status is not RequestStatus.FINISHED}
        pool = self.pool
        assert pool._ref_counts == [holders[block_id] for block_id in range(pool.num_blocks)]
        assert pool.num_free_blocks + pool.num_evictable_blocks + len(holders) == pool.num_blocks

    def receive(self, outputs: list[TokenOutput]) -> None:
        """Compare outputs with the oracle's."""
        for output in outputs:
            choice = self.choices[output.request_id, output.choice_index]
            assert choice.finish_reason is None, "a sequence ended twice"
            assert output.index == len(choice.received)
            choice.received += output.token_ids
            choice.finish_reason = output.finish_reason
            assert choice.received == choice.expected[: len(choice.received)]
            if output.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert choice.received == choice.expected
                is_stop = output.finish_reason is FinishReason.STOP
                assert not is_stop or choice.expected[-1] in EOS

    def _check_batch(self, batch: Batch) -> None:
        """A block about to be written has one holder and is in nobody's prefix."""
        self.clock.advance(0.001 + 0.0005 * batch.num_tokens + self._move_s * len(batch.moves))
        size = self.config.block_size
        assert batch.num_tokens <= self.config.max_num_batched_tokens
        assert len(batch.requests) <= self.config.max_num_seqs
        for scheduled, start in zip(batch.requests, batch.starts, strict=True):
            request = scheduled.request
            self._requests.add(request)
            first = start // size
            end = start + scheduled.num_scheduled_tokens
            assert end <= len(request.block_ids) * size
            for block_id in request.block_ids[first:]:
                assert self.pool.ref_count(block_id) == 1
                assert not self.pool.is_cached(block_id)
