"""Engines of several ranks, in real processes, against an engine of one."""

from pathlib import Path

import numpy as np
import pytest

from engine.errors import InvalidConfig
from engine.model_config import ModelConfig, check_parallel_size
from tests.engine.generation import generate_once, small_config
from tests.engine.tp_ranks import generate_in_parallel
from tests.oracle import ReferenceModel, assert_same_greedy, make_checkpoint

NUM_TOKENS = 16
CASES = [
    ("llama-biased", {"num_key_value_heads": 6}),
    ("llama-tied", {"num_key_value_heads": 1}),  # fewer KV heads than ranks
    ("qwen3", {"num_key_value_heads": 6, "head_dim": 10}),
    ("mistral-windowed", {"num_key_value_heads": 1}),
]


def prompts(vocab_size: int = 131) -> list[list[int]]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, vocab_size, length).tolist() for length in (1, 6, 37)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_together_generate_what_one_rank_does(size: int, tmp_path: Path) -> None:
    folders = [make_checkpoint(tmp_path / name, name, **changes) for name, changes in CASES]
    # A small token budget, so that prefills come in chunks and steps without logits happen.
    settings = {"max_num_batched_tokens": 16}
    configs = [small_config(f, tensor_parallel_size=size, **settings) for f in folders]

    results = generate_in_parallel(tmp_path, configs, prompts(), NUM_TOKENS)

    for folder, token_ids in zip(folders, results, strict=True):
        reference = ReferenceModel(folder)
        alone = generate_once(small_config(folder, **settings), prompts(), NUM_TOKENS)
        for prompt, ids, ids_alone in zip(prompts(), token_ids, alone, strict=True):
            expected = reference.greedy(prompt, NUM_TOKENS)
            assert_same_greedy(ids, expected)
            assert_same_greedy(ids_alone, expected)


@pytest.mark.slow
def test_three_ranks_run_the_real_model(smollm2_path: Path, tmp_path: Path) -> None:
    config = small_config(
        smollm2_path, tensor_parallel_size=3, block_size=16, kv_cache_bytes=64 << 20
    )

    [token_ids] = generate_in_parallel(tmp_path, [config], prompts(49_000), NUM_TOKENS)

    reference = ReferenceModel(smollm2_path)
    for prompt, ids in zip(prompts(49_000), token_ids, strict=True):
        assert_same_greedy(ids, reference.greedy(prompt, NUM_TOKENS))


def test_a_size_that_splits_heads_unevenly_is_refused_with_those_that_work(tmp_path: Path) -> None:
    changes = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72}
    model = ModelConfig.from_folder(make_checkpoint(tmp_path, "llama", **changes))

    for size in (1, 3, 9):
        check_parallel_size(model, size)
    for size in (2, 4, 6, 18):
        with pytest.raises(InvalidConfig) as error:
            check_parallel_size(model, size)
        assert "9 heads, 3 KV heads" in error.value.cause
        assert error.value.fix == "Use a size of 1, 3, 9."
