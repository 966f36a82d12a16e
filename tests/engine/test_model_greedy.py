"""Greedy tokens of the whole engine against transformers in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.build import build_core
from engine.parallel import TensorParallel
from engine.step_time import StepTimeFit
from tests.engine.generation import generate, generate_once, small_config
from tests.fakes import expect_short_outputs
from tests.oracle import CHECKPOINTS, ReferenceModel, assert_same_greedy, make_checkpoint

NUM_TOKENS = 24
LENGTHS = (1, 3, 4, 5, 16, 29, 40)


def prompts(vocab_size: int = 131) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, vocab_size, length).tolist() for length in LENGTHS]


def assert_equal_to_transformers(folder: Path, token_ids: list[list[int]]) -> None:
    reference = ReferenceModel(folder)
    for prompt, ids in zip(prompts(), token_ids, strict=True):
        assert_same_greedy(ids, reference.greedy(prompt, NUM_TOKENS))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_greedy_tokens_equal_transformers_for_every_architecture(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, name)

    token_ids = generate_once(small_config(folder), prompts(), NUM_TOKENS)

    assert_equal_to_transformers(folder, token_ids)


@pytest.mark.parametrize("name", ["llama", "mistral-windowed"])
@pytest.mark.parametrize(
    "changes",
    [
        {"max_num_batched_tokens": 7},
        {"max_num_seqs": 2},
        {"block_size": 16},
        {"block_size": 1},
        # 40 blocks of 4 tokens for 7 sequences that grow to 266 tokens: preemption is certain.
        {"kv_cache_bytes": 40 * 1536, "max_model_len": 64},
        {"kv_cache_bytes": 40 * 1536, "max_model_len": 64, "host_kv_bytes": 400 * 1536},
        {"preset": "throughput"},
        {"preset": "interactive", "max_num_batched_tokens": 16},
        {"enable_prefix_caching": False},
    ],
    ids=str,
)
def test_greedy_tokens_do_not_depend_on_how_they_are_scheduled(
    name: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether copying blocks pays depends on how busy this machine is.
    monkeypatch.setattr(StepTimeFit, "move_s", 0.0)
    folder = make_checkpoint(tmp_path, name)
    core = build_core(small_config(folder, **changes), TensorParallel.single())
    expect_short_outputs(core._scheduler._lengths)

    token_ids = generate(core, prompts(), NUM_TOKENS)

    assert_equal_to_transformers(folder, token_ids)
    snapshot = core.snapshot()
    assert (snapshot.num_used_host_blocks > 0) == ("host_kv_bytes" in changes)
    assert snapshot.num_usable_blocks == snapshot.num_blocks
    assert (snapshot.num_preemptions > 0) == ("kv_cache_bytes" in changes)
    core.shutdown()


def test_greedy_tokens_are_the_same_on_a_prefix_cache_hit(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3")
    core = build_core(small_config(folder), TensorParallel.single())

    first = generate(core, prompts(), NUM_TOKENS)
    again = generate(core, prompts(), NUM_TOKENS)

    assert core.snapshot().num_cache_hit_tokens > 0
    assert_equal_to_transformers(folder, first)
    assert_equal_to_transformers(folder, again)
    core.shutdown()


@pytest.mark.slow
def test_greedy_tokens_of_the_real_model_equal_transformers(smollm2_path: Path) -> None:
    config = small_config(smollm2_path, block_size=16, kv_cache_bytes=256 << 20)
    rng = np.random.default_rng(3)
    starts = [rng.integers(5, 49_000, length).tolist() for length in (1, 2, 9, 33, 64, 130)]

    token_ids = generate_once(config, starts, 16)

    reference = ReferenceModel(smollm2_path)
    for start, ids in zip(starts, token_ids, strict=True):
        assert_same_greedy(ids, reference.greedy(start, 16))
