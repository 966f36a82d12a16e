"""Paging under random load: blocks conserved, nothing shared for writing, nobody lost or starved.

A state machine adds, aborts and steps over small pools; tests/engine/checked_core.py checks.
"""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.config import Preset
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.engine.checked_core import VOCAB, CheckedCore

MAX_MODEL_LEN = 96

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
        "is_overlapping": st.booleans(),
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


class Paging(RuleBasedStateMachine):
    """What clients do and when."""

    @initialize(sizes=sizes)
    def start(self, sizes: dict[str, Any]) -> None:
        num_cache_tokens = sizes.pop("num_cache_tokens")
        if not sizes["enable_prefix_caching"]:
            sizes["num_host_blocks"] = 0
        num_blocks = max(1, num_cache_tokens // sizes["block_size"])
        self.engine = CheckedCore(num_blocks=num_blocks, max_model_len=MAX_MODEL_LEN, **sizes)
        self.num_added = 0

    @rule(asks=st.lists(asks, min_size=1, max_size=4))
    def add(self, asks: list[GenerateRequest]) -> None:
        for ask in asks:
            self.num_added += 1
            self.engine.add(replace(ask, request_id=str(self.num_added)))

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if not self.engine.choices:
            return
        request_id, index = data.draw(st.sampled_from(sorted(self.engine.choices)))
        whole = data.draw(st.booleans())
        self.engine.abort(request_id, None if whole else index)

    @rule(num_steps=st.integers(1, 5))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.engine.step()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.run_until_idle()

    @invariant()
    def queued_tokens_are_counted(self) -> None:
        self.engine.check_queue()

    @invariant()
    def blocks_are_conserved(self) -> None:
        self.engine.check_blocks()


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


TestPagingAtLength = pytest.mark.long(PagingAtLength.TestCase)
TestPagingAtLength.settings = settings(COMMON, max_examples=1000)
