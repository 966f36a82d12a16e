"""Requests that go on in another engine: the same tokens, from every index on."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.build import build_core
from engine.core import EngineCore
from engine.errors import InvalidRequest
from engine.output import FinishReason, TokenLogprob
from engine.parallel import TensorParallel
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams
from tests.engine.generation import small_config
from tests.engine.test_core import ask, make_core
from tests.engine.test_determinism import BLOCK_BYTES, WIDTHS, needs_compiled_kernels
from tests.oracle import make_checkpoint

NUM_TOKENS = 40
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "top_p": 0.9, "top_k": 40},
    "penalties": {
        "temperature": 0.7,
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.4,
    },
    "minimum": {"temperature": 0.0, "min_tokens": 25, "stop_token_ids": tuple(range(40))},
    "two": {"n": 2, "temperature": 0.9},
}

Answer = dict[int, tuple[list[int], list[TokenLogprob], FinishReason | None]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama", **WIDTHS)


def make_engine(folder: Path) -> EngineCore:
    return build_core(
        small_config(
            folder, kv_cache_bytes=BLOCK_BYTES * 2000, deterministic=True, max_num_seqs=128
        ),
        TensorParallel.single(),
    )


def make_request(kind: str) -> GenerateRequest:
    params = SamplingParams(
        **{"max_tokens": NUM_TOKENS, "ignore_eos": True, "logprobs": 2, "seed": 5, **PARAMS[kind]}
    )
    prompt = [(7 * i + len(kind)) % 131 for i in range(13)]
    return GenerateRequest(request_id=kind, prompt_token_ids=prompt, params=params)


def run(core: EngineCore, *requests: GenerateRequest) -> dict[str, Answer]:
    for request in requests:
        core.add(request)
    answers: dict[str, Answer] = defaultdict(dict)
    while core.has_work:
        for each in core.step().outputs:
            tokens, logprobs, _ = answers[each.request_id].get(each.choice_index, ([], [], None))
            tokens += each.token_ids
            logprobs += each.logprobs or []
            answers[each.request_id][each.choice_index] = tokens, logprobs, each.finish_reason
    snapshot = core.snapshot()
    assert snapshot.num_usable_blocks == snapshot.num_blocks
    return answers


@needs_compiled_kernels
@pytest.mark.parametrize("kind", PARAMS)
def test_it_goes_on_with_the_same_tokens_from_every_index(folder: Path, kind: str) -> None:
    first, second = make_engine(folder), make_engine(folder)
    request = make_request(kind)
    whole = run(first, request)[kind]
    length = min(len(tokens) for tokens, _, _ in whole.values())
    resumed = [
        replace(request, request_id=str(k), emitted=[whole[i][0][:k] for i in whole])
        for k in range(length)
    ]
    answers = run(second, *resumed)
    for k in range(length):
        for choice, (tokens, logprobs, reason) in whole.items():
            assert answers[str(k)][choice] == (tokens[k:], logprobs[k:], reason), (k, choice)


@needs_compiled_kernels
def test_a_choice_that_has_ended_does_not_come_again(folder: Path) -> None:
    first, second = make_engine(folder), make_engine(folder)
    request = make_request("two")
    whole = run(first, request)["two"]
    for ended in (0, 1):
        emitted: list[list[int] | None] = [None if i == ended else whole[i][0][:9] for i in (0, 1)]
        answer = run(second, replace(request, emitted=emitted))["two"]
        left = 1 - ended
        assert answer == {left: (whole[left][0][9:], whole[left][1][9:], FinishReason.LENGTH)}


def test_outputs_say_where_they_belong() -> None:
    core = make_core()
    core.add(replace(ask("r", [1, 2, 3], n=2, max_tokens=8), emitted=[[4, 5, 6], [7]]))
    first = {each.choice_index: each.index for each in core.step().outputs}
    assert first == {0: 3, 1: 1}


@pytest.mark.parametrize(
    "emitted", [[[1]], [[1], [2], [3]], [None, None], [[1, 2, 3, 4], None], [[1], [1000]]]
)
def test_what_cannot_go_on_is_refused(emitted: list[list[int] | None]) -> None:
    core = make_core()
    with pytest.raises(InvalidRequest) as caught:
        core.add(replace(ask("r", [1, 2, 3], n=2, max_tokens=4), emitted=emitted))
    assert caught.value.param == "emitted"
    assert not core.has_work


def test_a_tenant_does_not_pay_twice_for_what_was_drawn_elsewhere() -> None:
    request = ask("r", [1, 2, 3], max_tokens=20)
    served = []
    for num_emitted in (0, 10):
        core = make_core()
        emitted = [list(range(num_emitted))] if num_emitted else []
        core.add(replace(request, emitted=[*emitted], tenant="t"))
        while core.has_work:
            core.step()
        served.append(core._scheduler._fair_share._served.get("t", 0.0))
    assert served[1] <= served[0]
