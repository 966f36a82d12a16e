"""Paging under random load: blocks conserved, nothing shared for writing, nobody lost or starved.

A state machine adds, aborts and steps over small pools. The executor (tests/fakes.py) checks each
read of the simulated cache; this file checks the pool before and after each step and compares
every output with the oracle, which knows neither batches nor blocks.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.batch import Batch
from engine.config import EngineConfig, Preset
from engine.core import EngineCore
from engine.errors import InvalidRequest, Overloaded
from engine.output import FinishReason, TokenOutput
from engine.request import GenerateRequest, Request, RequestStatus
from engine.sampling_params import SamplingParams
from tests.fakes import FakeClock, FakeExecutor, expect_short_outputs

VOCAB = 40
EOS = frozenset({3})
MAX_MODEL_LEN = 96
# Preemption computes tokens again, but only so often.
MAX_WASTE = 5

sizes = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([1, 1, 1, 2, 2, 4, 8, 16, 32]),
        "num_cache_tokens": st.integers(8, 128),
        "max_num_batched_tokens": st.integers(1, 12) | st.integers(1, 48),
        "max_num_seqs": st.integers(1, 6),
        "max_num_waiting": st.integers(4, 12),
        "enable_prefix_caching": st.booleans(),
        "num_host_blocks": st.sampled_from([0, 0, 1, 3, 20]),
        "preset": st.sampled_from(list(Preset)),
        "is_hopeful": st.booleans(),
    }
)
# Few different prompts that share long beginnings, so that blocks are shared all the time.
prompts = st.builds(
    lambda family, length, tail: [(family * i) % VOCAB for i in range(length)] + tail,
    st.integers(1, 2),
    st.integers(0, 64),
    st.lists(st.integers(0, VOCAB - 1), max_size=3),
)
asks = st.builds(
    lambda prompt, salt, priority, deadline_s, **params: GenerateRequest(
        request_id="",
        prompt_token_ids=prompt,
        params=SamplingParams(**params),
        cache_salt=salt,
        priority=priority,
        deadline_s=deadline_s,
    ),
    prompts,
    st.sampled_from(["", "", "tenant"]),
    st.sampled_from([0, 0, 0, 1, -1]),
    st.sampled_from([None] * 7 + [0.2]),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    max_tokens=st.none() | st.integers(1, 40),
    seed=st.integers(0, 1),
    ignore_eos=st.booleans(),
)


@dataclass
class Choice:
    """What one sequence has sent so far, and what it must send in all."""

    expected: list[int]
    cost: int
    """Tokens that its computation takes where nothing is lost."""
    received: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Paging(RuleBasedStateMachine):
    """Clients, engine and checks."""

    @initialize(sizes=sizes)
    def start(self, sizes: dict[str, Any]) -> None:
        num_host_blocks = sizes.pop("num_host_blocks") if sizes["enable_prefix_caching"] else 0
        sizes.pop("num_host_blocks", None)
        is_hopeful = sizes.pop("is_hopeful")
        num_blocks = max(1, sizes.pop("num_cache_tokens") // sizes["block_size"])
        config = EngineConfig(model_path=Path("unused"), model_name="fake", **sizes)
        self.executor = FakeExecutor(
            num_blocks,
            config.block_size,
            vocab_size=VOCAB,
            num_host_blocks=num_host_blocks,
            on_execute=self.check_writes,
        )
        self.clock = FakeClock()
        self.core = EngineCore(
            config,
            self.executor,
            max_model_len=MAX_MODEL_LEN,
            eos_token_ids=EOS,
            vocab_size=VOCAB,
            clock=self.clock,
        )
        if is_hopeful:
            expect_short_outputs(self.core._scheduler._lengths)
        self.config = config
        self.pool = self.core._pool
        self.capacity = min(MAX_MODEL_LEN, num_blocks * config.block_size)
        self.choices: dict[tuple[str, int], Choice] = {}
        self.requests: set[Request] = set()
        self.num_added = 0

    @rule(asks=st.lists(asks, min_size=1, max_size=4))
    def add(self, asks: list[GenerateRequest]) -> None:
        for ask in asks:
            self.num_added += 1
            self.add_one(replace(ask, request_id=str(self.num_added)))

    def add_one(self, request: GenerateRequest) -> None:
        prompt = request.prompt_token_ids
        n, max_tokens = request.params.n, request.params.max_tokens
        room = self.capacity - len(prompt)
        is_possible = bool(prompt) and room >= (max_tokens or 1)
        num_waiting = self.core.snapshot().num_waiting
        try:
            self.core.add(request)
        except InvalidRequest:
            assert not is_possible
            return
        except Overloaded:
            assert num_waiting + n > self.config.max_num_waiting
            return
        assert is_possible
        limit = room if max_tokens is None else max_tokens
        stops = frozenset() if request.params.ignore_eos else EOS
        for index in range(n):
            expected = self.executor.model.generate(request, index, limit, stops)
            choice = Choice(expected, len(prompt) + len(expected))
            self.choices[request.request_id, index] = choice

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if not self.choices:
            return
        request_id, index = data.draw(st.sampled_from(sorted(self.choices)))
        whole = data.draw(st.booleans())
        self.receive(self.core.abort(request_id, None if whole else index))
        for (other_id, other_index), choice in self.choices.items():
            if other_id == request_id and (whole or other_index == index):
                assert choice.finish_reason is not None

    @rule(num_steps=st.integers(1, 5))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.receive(self.core.step().outputs)
            self.blocks_are_conserved()

    def run_until_idle(self) -> None:
        """Nothing starves: the first by rank gets on, whatever the others do."""
        live = [c for c in self.choices.values() if c.finish_reason is None]
        for _ in range(MAX_WASTE * sum(choice.cost for choice in live)):
            if not self.core.has_work:
                break
            self.receive(self.core.step().outputs)
        assert not self.core.has_work
        for choice in self.choices.values():
            assert choice.finish_reason is not None
        self.blocks_are_conserved()
        assert self.pool.num_usable_blocks == self.pool.num_blocks

    def teardown(self) -> None:
        if hasattr(self, "core"):
            self.run_until_idle()

    @invariant()
    def queued_tokens_are_counted(self) -> None:
        scheduler = self.core._scheduler
        gaps = [r.num_tokens - r.num_computed_tokens for r in scheduler._prefilling]
        assert all(r.num_tokens - r.num_computed_tokens == 1 for r in scheduler._decoding)
        known = sum(r.num_tokens for r in scheduler._waiting) + sum(gaps)
        assert self.core.snapshot().num_queued_prefill_tokens == known

    @invariant()
    def blocks_are_conserved(self) -> None:
        holders: Counter[int] = Counter()
        for request in self.requests:
            assert len(set(request.block_ids)) == len(request.block_ids)
            if request.status is not RequestStatus.RUNNING:
                assert not request.block_ids
            holders.update(request.block_ids)
        pool = self.pool
        for block_id in range(pool.num_blocks):
            assert pool.ref_count(block_id) == holders[block_id]
        assert pool.num_free_blocks + pool.num_evictable_blocks + len(holders) == pool.num_blocks

    def check_writes(self, batch: Batch) -> None:
        """A block about to be written has one holder and is in nobody's prefix."""
        self.clock.advance(0.001 + 0.0005 * batch.num_tokens + 0.0001 * len(batch.moves))
        assert batch.num_tokens <= self.config.max_num_batched_tokens
        assert len(batch.requests) <= self.config.max_num_seqs
        for scheduled in batch.requests:
            request = scheduled.request
            self.requests.add(request)
            first = request.num_computed_tokens // self.config.block_size
            end = request.num_computed_tokens + scheduled.num_scheduled_tokens
            assert end <= len(request.block_ids) * self.config.block_size
            for block_id in request.block_ids[first:]:
                assert self.pool.ref_count(block_id) == 1
                assert not self.pool.is_cached(block_id)

    def receive(self, outputs: list[TokenOutput]) -> None:
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


COMMON = settings(
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

TestPaging = Paging.TestCase
TestPaging.settings = settings(COMMON, max_examples=100)


class PagingAtLength(Paging):
    """The same, many more times."""


TestPagingAtLength = pytest.mark.slow(PagingAtLength.TestCase)
TestPagingAtLength.settings = settings(COMMON, max_examples=1000)
