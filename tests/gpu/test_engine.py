"""The whole engine on a CUDA device against transformers in float32 on CPU.

Some run on CPU as well, where they prove nothing but that the tests themselves are sound.
"""

import gc
from pathlib import Path

import pytest
import torch

from engine import LLM, SamplingParams
from engine.build import build_core
from engine.kv_cache import attention_geometry
from engine.model_config import ModelConfig
from engine.parallel import TensorParallel
from tests.engine.generation import generate, generate_once, small_config
from tests.engine.greedy_reference import GreedyReference
from tests.oracle import make_checkpoint

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
PROMPTS = [[5, 9, 2], list(range(1, 100)), [64], [7] * 40]
NAMES = ["llama", "llama3-rope", "mistral-windowed", "qwen2", "qwen3"]
NUM_TOKENS = 24


@pytest.mark.parametrize("enforce_eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize(
    ("device", "name"),
    [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in NAMES] + [("cpu", "llama")],
)
def test_greedy_tokens_equal_the_reference(
    device: str, name: str, enforce_eager: bool, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, name)
    config = small_config(
        folder, device=device, block_size=16, max_num_seqs=8, enforce_eager=enforce_eager
    )
    reference = GreedyReference(folder)
    for prompt, output in zip(PROMPTS, generate_once(config, PROMPTS, NUM_TOKENS), strict=True):
        assert len(output) == NUM_TOKENS
        reference.num_equal(prompt, output)


@pytest.mark.parametrize("device", [CUDA, "cpu"])
def test_a_batch_that_comes_often_gets_its_graph_while_it_runs(device: str, tmp_path: Path) -> None:
    """Twenty sequences begin with the graph of 32 rows and end with that of 24."""
    folder = make_checkpoint(tmp_path, "llama")
    config = small_config(folder, device=device, block_size=16, max_num_seqs=40)
    core = build_core(config, TensorParallel.single())
    prompts = [[i + 1] * (i % 5 + 1) for i in range(20)]
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else 0
    outputs = generate(core, prompts, 200)
    if device == "cuda":
        runner = core._pipeline._executor._runner  # type: ignore[attr-defined]
        assert list(runner._graphs._graphs) == [40, 32, 16, 8, 4, 2, 1, 24]
        assert free - torch.cuda.mem_get_info()[0] < 64 << 20, "it shares the largest one's memory"
    core.shutdown()
    reference = GreedyReference(folder)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output) == 200
        reference.num_equal(prompt, output)


@pytest.mark.parametrize("device", [CUDA, "cpu"])
def test_the_real_model_answers_as_the_reference(device: str, smollm2_path: Path) -> None:
    reference = GreedyReference(smollm2_path)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    text = "The capital of France is"
    with LLM(smollm2_path, device=device, dtype="float32", kv_cache_bytes=256 << 20) as llm:
        generation = llm.generate([text], params)[0]
    output = generation.choices[0].token_ids
    assert len(output) == NUM_TOKENS
    reference.num_equal(generation.prompt_token_ids, output)


@pytest.mark.parametrize("device", [CUDA, "cpu"])
def test_blocks_come_back_from_the_host_as_they_went(device: str, tmp_path: Path) -> None:
    """There is room for one prompt at a time: each pushes the others' blocks out to the host."""
    folder = make_checkpoint(tmp_path, "llama")
    reference = GreedyReference(folder)
    model = ModelConfig.from_folder(folder)
    geometry = attention_geometry(model, 1, torch.float32, block_size=4, num_blocks=28)
    config = small_config(
        folder,
        device=device,
        kv_cache_bytes=28 * geometry.block_bytes * model.num_layers,
        host_kv_bytes=64 << 20,
    )
    core = build_core(config, TensorParallel.single())
    for prompt in [[i + 1] * 8 + list(range(20, 100)) for i in range(4)] * 3:
        [output] = generate(core, [prompt], 8)
        reference.num_equal(prompt, output)
    assert core.snapshot().num_used_host_blocks > 0
    core.shutdown()


@pytest.mark.gpu
def test_the_plan_is_what_the_device_gives(tmp_path: Path) -> None:
    """What was planned for weights, step and cache is what is taken, within 3 % of the device."""
    folder = make_checkpoint(tmp_path, "llama")
    gc.collect()
    torch.cuda.empty_cache()  # what tests before left
    before, total = torch.cuda.mem_get_info()
    config = small_config(folder, device="cuda", kv_cache_bytes=None, memory_utilization=0.5)
    core = build_core(config, TensorParallel.single())
    taken = before - torch.cuda.mem_get_info()[0]
    core.shutdown()
    assert abs(taken - 0.5 * total) < 0.03 * total
