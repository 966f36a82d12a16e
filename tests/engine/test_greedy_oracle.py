"""Greedy tokens of the real model against transformers, however the engine computes them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.batch import Batch
from engine.build import build_runner
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.executor import Executor, Submission
from engine.generation import GenerationRun
from engine.input_batch import InputBatch
from engine.model_executor import ModelExecutor
from engine.model_runner import ModelRunner
from engine.parallel import TensorParallel
from engine.request import GenerateRequest
from engine.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.snapshot import EngineSnapshot
from engine.tokenizer import Tokenizer
from tests.engine.greedy_reference import GreedyReference
from tests.fakes import expect_short_outputs

pytestmark = pytest.mark.slow

NUM_TOKENS = 64
MAX_MODEL_LEN = 512
BLOCK_SIZE = 16
MAX_NEAR_TIES = 2
"""Of 20 prompts; a wrong kernel makes more."""

RAW = [
    "Once upon a time, in a village by the sea,",
    "The theory of general relativity states that",
    "def quicksort(items):\n    ",
    "#include <stdio.h>\n\nint main(void) {\n",
    "SELECT name, COUNT(*) FROM orders\nWHERE",
    "1, 1, 2, 3, 5, 8, 13, 21, 34,",
    "3.14159265358979 2.71828182845904 1.41421356237309",
    "La Révolution française a commencé en",
    "Im Jahre 1905 veröffentlichte Albert Einstein",
    "日本の首都は",
    "Привет, меня зовут",
    "a",
]
CHAT = [
    "What is the capital of France?",
    "Write a Python function that reverses a string.",
    "What is 12345 + 67890? Think step by step.",
    "Explain photosynthesis to a child in three sentences.",
    "Translate to Spanish: The weather is nice today.",
    "List the planets of the solar system in order.",
    "你好，请介绍一下你自己。",  # noqa: RUF001  the Chinese comma is meant
    "Rewrite this in fewer words: " + "The meeting, which was long, was about the budget. " * 6,
]


@dataclass(frozen=True)
class Model:
    """The loaded model and what is needed to run it in one way or another."""

    config: EngineConfig
    runner: ModelRunner
    vocab_size: int
    tokenizer: Tokenizer
    prompts: list[list[int]]


class FewBlocks:
    """An executor that owns up to fewer KV blocks than it has."""

    def __init__(self, executor: Executor, num_blocks: int) -> None:
        self._executor = executor
        self.num_blocks = num_blocks
        self.num_host_blocks = 0

    def submit(self, batch: Batch) -> Submission:
        return self._executor.submit(batch)

    def shutdown(self) -> None:
        self._executor.shutdown()


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Model:
    config = EngineConfig(
        model_path=smollm2_path,
        model_name="smollm2",
        dtype="float32",
        device="cpu",
        block_size=BLOCK_SIZE,
        kv_cache_bytes=256 << 20,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=32,
        # One: threads that wait for each other on a busy machine take many times as long.
        num_threads=1,
    )
    runner, report = build_runner(config, TensorParallel.single())
    tokenizer = Tokenizer.from_folder(smollm2_path)
    chats = [tokenizer.render_chat([{"role": "user", "content": text}]) for text in CHAT]
    prompts = [tokenizer.encode(text) for text in RAW]
    prompts += [tokenizer.encode(text, add_special_tokens=False) for text in chats]
    assert len(prompts) == 20
    return Model(config, runner, report.model.vocab_size, tokenizer, prompts)


@pytest.fixture(scope="module")
def reference(smollm2_path: Path) -> GreedyReference:
    return GreedyReference(smollm2_path)


def make_core(model: Model, num_blocks: int | None = None, **settings: Any) -> EngineCore:
    config = replace(model.config, **settings)
    executor: Executor = ModelExecutor(
        model.runner,
        InputBatch(
            max_num_seqs=config.max_num_seqs, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE
        ),
        Sampler(model.vocab_size),
        TensorParallel.single(),
    )
    if num_blocks is not None:
        executor = FewBlocks(executor, num_blocks)
    return EngineCore(
        config,
        executor,
        max_model_len=MAX_MODEL_LEN,
        eos_token_ids=frozenset(),
        vocab_size=model.vocab_size,
    )


def check(
    model: Model,
    reference: GreedyReference,
    core: EngineCore,
    prompts: list[list[int]],
    num_tokens: int,
) -> EngineSnapshot:
    """Run the prompts and compare every token; returns the engine's counters."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens)
    requests = [
        GenerateRequest(request_id=str(i), prompt_token_ids=prompt, params=params)
        for i, prompt in enumerate(prompts)
    ]
    num_departed = 0
    for generation in GenerationRun(core, model.tokenizer, requests).run():
        output = generation.choices[0].token_ids
        assert len(output) == num_tokens
        num_departed += reference.num_equal(generation.prompt_token_ids, output) < num_tokens
    assert num_departed <= MAX_NEAR_TIES
    return core.snapshot()


def test_tokens_equal_the_reference(model: Model, reference: GreedyReference) -> None:
    check(model, reference, make_core(model), model.prompts, NUM_TOKENS)


@pytest.mark.parametrize("max_num_batched_tokens", [16, 64])
def test_tokens_do_not_depend_on_the_chunk_size(
    model: Model, reference: GreedyReference, max_num_batched_tokens: int
) -> None:
    core = make_core(model, max_num_batched_tokens=max_num_batched_tokens)
    assert max(map(len, model.prompts)) > max_num_batched_tokens
    check(model, reference, core, model.prompts, 24)


def test_tokens_do_not_depend_on_batch_mates(model: Model, reference: GreedyReference) -> None:
    core = make_core(model, max_num_seqs=1)
    check(model, reference, core, model.prompts[::5], 24)


def test_tokens_do_not_depend_on_prefix_cache_hits(
    model: Model, reference: GreedyReference
) -> None:
    core = make_core(model)
    check(model, reference, core, model.prompts, 24)
    num_hits = core.snapshot().num_cache_hit_tokens
    again = check(model, reference, core, model.prompts, 24)
    assert again.num_cache_hit_tokens - num_hits > sum(map(len, model.prompts)) // 2
    without = make_core(model, enable_prefix_caching=False)
    assert check(model, reference, without, model.prompts[::4], 24).num_cache_hit_tokens == 0


def test_tokens_do_not_depend_on_preemptions(model: Model, reference: GreedyReference) -> None:
    # 320 tokens of cache, and 1049 in the end: several prompts start, few can finish together.
    core = make_core(model, num_blocks=20)
    expect_short_outputs(core._scheduler._lengths)
    snapshot = check(model, reference, core, model.prompts, 24)
    assert snapshot.num_preemptions >= 5
