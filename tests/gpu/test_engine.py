"""The whole engine on a CUDA device against transformers in float32 on CPU."""

import gc
from pathlib import Path

import pytest
import torch

from engine import LLM, SamplingParams
from tests.engine.greedy_reference import GreedyReference
from tests.oracle import make_checkpoint

pytestmark = pytest.mark.gpu
PROMPTS = [[5, 9, 2], list(range(1, 100)), [64], [7] * 40]
NAMES = ["llama", "llama3-rope", "mistral-windowed", "qwen2", "qwen3"]


@pytest.mark.parametrize("enforce_eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_equal_the_cpu(name: str, enforce_eager: bool, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, name)
    reference = GreedyReference(folder)
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    with LLM(
        folder,
        load_format="auto",
        device="cuda",
        dtype="float32",
        kv_cache_bytes=64 << 20,
        max_num_seqs=8,
        enforce_eager=enforce_eager,
    ) as llm:
        generations = llm.generate(PROMPTS, params)
    for generation in generations:
        output = generation.choices[0].token_ids
        assert len(output) == 24
        reference.num_equal(generation.prompt_token_ids, output)


def test_the_real_model_answers_as_on_cpu(smollm2_path: Path) -> None:
    reference = GreedyReference(smollm2_path)
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    text = "The capital of France is"
    with LLM(smollm2_path, device="cuda", dtype="float32", kv_cache_bytes=256 << 20) as llm:
        generation = llm.generate([text], params)[0]
    output = generation.choices[0].token_ids
    assert len(output) == 32
    reference.num_equal(generation.prompt_token_ids, output)


def test_the_plan_is_what_the_device_gives(tmp_path: Path) -> None:
    """What was planned for weights, step and cache is what is taken, within 3 % of the device."""
    folder = make_checkpoint(tmp_path, "llama")
    gc.collect()
    torch.cuda.empty_cache()  # what tests before left
    before = torch.cuda.mem_get_info()[0]
    with LLM(folder, device="cuda", memory_utilization=0.5):
        taken = before - torch.cuda.mem_get_info()[0]
    total = torch.cuda.mem_get_info()[1]
    assert abs(taken - 0.5 * total) < 0.03 * total
