"""Deterministic mode: log probabilities equal to the last bit, and a refusal where they are not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.build import build_core
from engine.core import EngineCore
from engine.determinism import check_deterministic
from engine.errors import InvalidConfig
from engine.model_config import ModelConfig
from engine.output import TokenLogprob
from engine.parallel import TensorParallel
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from engine.step_time import StepTimeFit
from kernels import native_library
from tests.engine.generation import small_config
from tests.fakes import expect_short_outputs
from tests.oracle import make_checkpoint

NUM_TOKENS = 20
LENGTHS = (1, 3, 4, 17, 33, 40)
NUM_CHOICES = 2
# Rows of whole vectors, and a block's bytes: 3 layers of 4 tokens, keys and values of 2 heads.
WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
BLOCK_BYTES = 3 * 4 * 2 * 2 * 16 * 4

Report = list[tuple[int, TokenLogprob]]

needs_compiled_kernels = pytest.mark.skipif(
    native_library.find_native_library() is None, reason="needs the compiled CPU kernels"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama", **WIDTHS)


def requests() -> list[GenerateRequest]:
    rng = np.random.default_rng(11)
    beginning = rng.integers(0, 131, 16).tolist()
    return [
        GenerateRequest(
            request_id=str(i),
            # Every other one begins like the others.
            prompt_token_ids=[
                *(beginning if i % 2 else ()),
                *rng.integers(0, 131, length).tolist(),
            ],
            params=SamplingParams(
                n=NUM_CHOICES,
                temperature=0.0 if i % 3 == 0 else 0.8,
                seed=i,
                max_tokens=NUM_TOKENS,
                ignore_eos=True,
                logprobs=3,
            ),
        )
        for i, length in enumerate(LENGTHS)
    ]


def run(core: EngineCore, asked: Sequence[GenerateRequest]) -> dict[tuple[str, int], Report]:
    for request in asked:
        core.add(request)
    reports: dict[tuple[str, int], Report] = {}
    while core.has_work:
        for output in core.step().outputs:
            report = reports.setdefault((output.request_id, output.choice_index), [])
            report += zip(output.token_ids, output.logprobs or (), strict=True)
    assert all(len(report) == NUM_TOKENS for report in reports.values())
    return reports


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[tuple[str, int], Report]:
    """What each request brings in an engine of its own, in one piece and with nothing cached."""
    reports: dict[tuple[str, int], Report] = {}
    for request in requests():
        for choice in range(NUM_CHOICES):
            config = small_config(folder, deterministic=True, enable_prefix_caching=False)
            core = build_core(config, TensorParallel.single())
            own = replace(request, params=replace(request.params, n=choice + 1))
            reports[request.request_id, choice] = run(core, [own])[request.request_id, choice]
            core.shutdown()
    return reports


@needs_compiled_kernels
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_num_batched_tokens": 1},
        {"max_num_batched_tokens": 7},
        {"max_num_batched_tokens": 512},
        {"max_num_seqs": 1},
        {"max_num_seqs": 5, "preset": "throughput"},
        {"block_size": 1},
        {"block_size": 16},
        {"enable_prefix_caching": False},
        {"num_threads": 2},
        {"kv_cache_bytes": 24 * BLOCK_BYTES, "max_model_len": 80},
        {
            "kv_cache_bytes": 24 * BLOCK_BYTES,
            "max_model_len": 80,
            "host_kv_bytes": 400 * BLOCK_BYTES,
            "max_num_batched_tokens": 7,
        },
    ],
    ids=str,
)
def test_logprobs_are_the_same_bits_however_they_are_computed(
    folder: Path,
    alone: dict[tuple[str, int], Report],
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whether copying pays on this machine is not the question.
    monkeypatch.setattr(StepTimeFit, "move_s", 0.0)
    core = build_core(small_config(folder, deterministic=True, **changes), TensorParallel.single())
    expect_short_outputs(core._scheduler._lengths)

    cold = run(core, requests())
    warm = run(core, requests())
    in_other_company = run(core, requests()[::-2])

    assert cold == alone
    assert warm == alone
    assert in_other_company == {name: alone[name] for name in in_other_company}
    snapshot = core.snapshot()
    assert (snapshot.num_preemptions > 0) == ("kv_cache_bytes" in changes)
    assert (snapshot.num_used_host_blocks > 0) == ("host_kv_bytes" in changes)
    has_cache = changes.get("enable_prefix_caching", True)
    assert (snapshot.num_cache_hit_tokens > 0) == has_cache
    assert snapshot.num_usable_blocks == snapshot.num_blocks
    core.shutdown()


def refusal(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> InvalidConfig:
    config = small_config(folder, deterministic=True, **changes)
    with pytest.raises(InvalidConfig) as caught:
        check_deterministic(
            config, ModelConfig.from_folder(folder), torch.device(config.device), dtype
        )
    assert caught.value.fix
    return caught.value


@needs_compiled_kernels
@pytest.mark.parametrize("size", [3, 4])
def test_sums_over_more_than_two_ranks_are_refused(folder: Path, size: int) -> None:
    assert f"2 ranks at most, not {size}" in refusal(folder, tensor_parallel_size=size).cause


@needs_compiled_kernels
@pytest.mark.parametrize("size", [1, 2])
def test_one_and_two_ranks_are_taken(folder: Path, size: int) -> None:
    config = small_config(folder, deterministic=True, tensor_parallel_size=size)
    model = ModelConfig.from_folder(folder)
    check_deterministic(config, model, torch.device("cpu"), torch.float32)


def test_types_without_compiled_kernels_are_refused(folder: Path) -> None:
    assert "dtype bfloat16" in refusal(folder, torch.bfloat16).cause
    with pytest.raises(InvalidConfig, match="dtype bfloat16"):
        build_core(
            small_config(folder, deterministic=True, dtype="bfloat16"), TensorParallel.single()
        )


def test_rows_that_vectors_do_not_divide_are_refused(tmp_path: Path) -> None:
    odd = make_checkpoint(tmp_path, "llama", **{**WIDTHS, "intermediate_size": 195})
    assert "195" in refusal(odd).cause


def test_machine_without_compiled_kernels_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_library, "find_native_library", lambda: None)
    assert "compiled CPU kernels" in refusal(folder).cause
    with pytest.raises(InvalidConfig, match="compiled CPU kernels"):
        build_core(small_config(folder, deterministic=True), TensorParallel.single())


def test_other_devices_are_refused(folder: Path) -> None:
    assert "not there on cuda" in refusal(folder, device="cuda").cause


def test_without_the_mode_nothing_is_refused(folder: Path) -> None:
    config = small_config(folder, tensor_parallel_size=4)
    model = ModelConfig.from_folder(folder)
    check_deterministic(config, model, torch.device("cpu"), torch.bfloat16)
