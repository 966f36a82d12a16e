"""The engine as it runs on a GPU: kernels, graphs and steps ahead together."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from engine.batch import Batch
from engine.build import build_core
from engine.core import EngineCore
from engine.executor import Submission
from engine.output import TokenLogprob, TokenOutput
from engine.parallel import TensorParallel
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.engine.greedy_reference import GreedyReference
from tests.engine.tp_ranks import generate_in_parallel
from tests.oracle import make_checkpoint
from tests.triton.gpu_engine import build, graph_sizes, run_gpu_follower, small_config

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


def watch_steps_ahead(core: EngineCore) -> list[bool]:
    """Return the list that tells of every batch from now on whether it was submitted ahead."""
    executor = core._pipeline._executor
    are_ahead: list[bool] = []
    submit = executor.submit

    def note(batch: Batch) -> Submission:
        are_ahead.append(any(s.request.num_unknown_tokens for s in batch.requests))
        return submit(batch)

    executor.submit = note  # type: ignore[method-assign]
    return are_ahead


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
    are_ahead = watch_steps_ahead(core)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    reference = GreedyReference(folder)
    for prompt, (output,) in zip(PROMPTS, run(core, PROMPTS, params), strict=True):
        assert len(output) == 6
        reference.num_equal(prompt, output)
    assert core._pool.num_usable_blocks == core._pool.num_blocks
    assert sum(are_ahead) >= 4


@pytest.mark.slow
def test_graphs_recorded_while_requests_run_give_the_same_tokens(
    device: torch.device, tmp_path: Path
) -> None:
    """Requests end one after the other, so steps of every size come, several times each."""
    folder = make_checkpoint(tmp_path, "llama", num_hidden_layers=1)
    core = build(small_config(folder, device))
    assert graph_sizes(core) == [4]
    prompts = [[5, 9, 2], [7, 7, 7, 1, 30, 22, 100], [64], [3, 3]]
    asks = [SamplingParams(temperature=0, max_tokens=3 * i, ignore_eos=True) for i in range(1, 5)]
    outputs = _together(core, prompts, asks)
    assert graph_sizes(core) == [4, 3, 2, 1]
    reference = GreedyReference(folder)
    for prompt, output, ask in zip(prompts, outputs, asks, strict=True):
        assert len(output) == ask.max_tokens
        reference.num_equal(prompt, output)


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
def test_asks_that_look_at_the_text_are_met_ahead_as_on_cpu(
    device: torch.device, tmp_path: Path
) -> None:
    """Penalties, bias, minimum length and log probabilities, beside a request without any."""
    params = partial(SamplingParams, temperature=0, max_tokens=8, ignore_eos=True)
    asks = [
        params(presence_penalty=2.0, logprobs=2),
        params(frequency_penalty=0.7, logprobs=1),
        params(),
        params(repetition_penalty=1.8, logprobs=3),
        params(logit_bias={3: 9.0}, stop_token_ids=(3,), min_tokens=6),
    ]
    config = small_config(make_checkpoint(tmp_path, "llama", num_hidden_layers=1), device)
    config = replace(config, max_num_seqs=8)
    core = build(config)
    are_ahead = watch_steps_ahead(core)
    outputs = _outputs_of(core, asks)
    assert sum(are_ahead) >= 7
    on_cpu = build_core(replace(config, device="cpu"), TensorParallel.single())
    for mine, theirs in zip(outputs, _outputs_of(on_cpu, asks), strict=True):
        assert [output.token_ids for output in mine] == [output.token_ids for output in theirs]
        for own, other in zip(_reports(mine), _reports(theirs), strict=True):
            assert own.token_id == other.token_id
            assert own.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [value for _, value in own.top] == pytest.approx(
                [value for _, value in other.top], abs=1e-4
            )


@pytest.mark.slow
def test_two_ranks_go_ahead_with_the_tokens_that_the_first_draws(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", num_hidden_layers=1)
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices, or none")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = small_config(folder, device, tensor_parallel_size=2)
    [outputs] = generate_in_parallel(tmp_path, [config], PROMPTS, 5, build, run_gpu_follower)
    reference = GreedyReference(folder)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert len(output) == 5
        reference.num_equal(prompt, output)


def _outputs_of(core: EngineCore, asks: list[SamplingParams]) -> list[list[TokenOutput]]:
    """Return what each ask brings; some come when others are on their way."""
    outputs: list[list[TokenOutput]] = [[] for _ in asks]

    def step() -> None:
        for output in core.step().outputs:
            outputs[int(output.request_id)].append(output)

    for i, params in enumerate(asks):
        prompt = PROMPTS[i % len(PROMPTS)]
        core.add(GenerateRequest(request_id=str(i), prompt_token_ids=prompt, params=params))
        if i > 1:
            step()
    while core.has_work:
        step()
    return outputs


def _together(
    core: EngineCore, prompts: list[list[int]], asks: list[SamplingParams]
) -> list[list[int]]:
    """Return the tokens that each prompt brings, each by its own ask."""
    for i, (prompt, params) in enumerate(zip(prompts, asks, strict=True)):
        core.add(GenerateRequest(request_id=str(i), prompt_token_ids=prompt, params=params))
    tokens: list[list[int]] = [[] for _ in prompts]
    while core.has_work:
        for output in core.step().outputs:
            tokens[int(output.request_id)] += output.token_ids
    return tokens


def _reports(outputs: list[TokenOutput]) -> list[TokenLogprob]:
    return [report for output in outputs for report in output.logprobs or []]
