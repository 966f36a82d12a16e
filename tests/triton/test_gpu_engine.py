"""The engine as it runs on a GPU: kernels, graphs and steps ahead together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.activation_memory import example_step
from engine.batch import Batch
from engine.block_move import MoveKind
from engine.core import EngineCore
from engine.executor import Submission
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.engine.greedy_reference import GreedyReference
from tests.oracle import make_checkpoint
from tests.triton.gpu_engine import build, small_config

PROMPTS = [[5, 9, 2], [7, 7, 7, 1, 30, 22, 100], [64]]


def run(
    core: EngineCore, prompts: list[list[int]], params: SamplingParams
) -> list[list[list[int]]]:
    """Return the tokens of every choice of every prompt, all running together."""
    for i, prompt in enumerate(prompts):
        core.add(GenerateRequest(request_id=str(i), prompt_token_ids=prompt, params=params))
    tokens: list[list[list[int]]] = [[[] for _ in range(params.n)] for _ in prompts]
    while core.has_work:
        for output in core.step().outputs:
            tokens[int(output.request_id)][output.choice_index] += output.token_ids
    return tokens


def watch_batches(core: EngineCore) -> list[Batch]:
    """Return the list to which every batch is added that the core submits from now on."""
    executor = core._pipeline._executor
    batches: list[Batch] = []
    submit = executor.submit

    def note(batch: Batch) -> Submission:
        batches.append(batch)
        return submit(batch)

    executor.submit = note  # type: ignore[method-assign]
    return batches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "enforce_eager"),
    [("llama", False), ("llama", True), ("qwen3", False), ("mistral-windowed", False)],
)
def test_greedy_tokens_equal_the_reference(
    name: str, enforce_eager: bool, device: torch.device, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, name, num_hidden_layers=1)
    core = build(small_config(folder, device, enforce_eager=enforce_eager))
    batches = watch_batches(core)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    reference = GreedyReference(folder)
    for prompt, (output,) in zip(PROMPTS, run(core, PROMPTS, params), strict=True):
        assert len(output) == 6
        reference.num_equal(prompt, output)
    assert core._pool.num_usable_blocks == core._pool.num_blocks
    num_ahead = sum(batch.is_ahead for batch in batches)
    assert num_ahead == 0 if enforce_eager else num_ahead >= 3


@pytest.mark.slow
def test_a_seed_gives_the_same_tokens_in_any_company(device: torch.device, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", num_hidden_layers=1)
    params = SamplingParams(temperature=1.5, top_p=0.9, max_tokens=4, seed=3, ignore_eos=True, n=2)
    together = run(build(small_config(folder, device)), PROMPTS, params)
    assert together[0][0] != together[0][1]
    for i, prompt in enumerate(PROMPTS):
        alone = build(small_config(folder, device, enforce_eager=True))
        assert run(alone, [prompt], params) == [together[i]]


@pytest.mark.slow
def test_requests_that_need_the_last_token_run_beside_others(
    device: torch.device, tmp_path: Path
) -> None:
    core = build(small_config(make_checkpoint(tmp_path, "llama", num_hidden_layers=1), device))
    penalised = SamplingParams(
        temperature=0, max_tokens=5, presence_penalty=2.0, logprobs=2, ignore_eos=True
    )
    plain = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    core.add(GenerateRequest(request_id="p", prompt_token_ids=PROMPTS[0], params=penalised))
    core.add(GenerateRequest(request_id="q", prompt_token_ids=PROMPTS[0], params=plain))
    tokens: dict[str, list[int]] = {"p": [], "q": []}
    while core.has_work:
        for output in core.step().outputs:
            tokens[output.request_id] += output.token_ids
            if output.request_id == "p":
                assert output.logprobs is not None
                assert len(output.logprobs[0].top) == 2
    alone = run(build(small_config(tmp_path, device)), [PROMPTS[0]], plain)
    assert tokens["q"] == alone[0][0]
    assert len(tokens["p"]) == 5


def test_steps_of_decodes_run_by_graphs_whatever_is_copied_first(
    device: torch.device, tmp_path: Path
) -> None:
    """A step ahead may evict blocks to the host; its tokens are on the device alone."""
    core = build(small_config(make_checkpoint(tmp_path, "llama", num_hidden_layers=1), device))
    runner = core._pipeline._executor._runner  # type: ignore[attr-defined]
    step = example_step([1, 1], block_size=4, num_rows=2)
    moves = np.array([[MoveKind.COPY, 0, 1]], dtype=np.int32)
    assert runner.keeps_tokens(replace(step, moves=moves))
    assert not runner.keeps_tokens(example_step([1, 2], block_size=4, num_rows=2))
