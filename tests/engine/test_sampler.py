"""Sampler: against the plain oracle, and what a draw may depend on."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.request import Request
from engine.sampler import Sampler
from engine.token_draw import pick
from tests.engine.sampling_oracle import (
    PROMPT,
    STOP_TOKEN_IDS,
    expected_token,
    kept_tokens,
    make_request,
    weigh,
)

VOCABS = [10, 128, 1000, 1300]


def make_logits(num_rows: int, vocab: int, *, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab, generator=generator) * scale


def draw(sampler: Sampler, logits: Tensor, requests: list[Request]) -> list[int]:
    return [token.token_id for token in sampler.sample(logits, requests)]


def check(logits: Tensor, requests: list[Request]) -> None:
    """The batch gives what the oracle gives, and leaves the logits alone."""
    before = logits.clone()
    drawn = draw(Sampler(logits.shape[1]), logits, requests)
    assert torch.equal(logits, before)
    expected = [expected_token(row, r) for row, r in zip(logits, requests, strict=True)]
    assert drawn == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", VOCABS)
def test_greedy_takes_the_lowest_id_of_the_highest_logits(vocab: int, dtype: torch.dtype) -> None:
    logits = make_logits(40, vocab).round().to(dtype)  # rounded: many ties
    requests = [make_request(str(row), temperature=0) for row in range(40)]
    drawn = draw(Sampler(vocab), logits, requests)
    for row, token_id in zip(logits.float().tolist(), drawn, strict=True):
        assert token_id == row.index(max(row))


PARAMS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 5.0},
    {"temperature": 1e-40},
    {"temperature": 0.9, "top_k": 5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 1000_000},
    {"temperature": 1.0, "top_k": 200},
    {"temperature": 1.0, "top_p": 0.37},
    {"temperature": 1.0, "top_p": 0.93},
    {"temperature": 4.0, "top_p": 0.9},  # flat: more than the first candidates
    {"temperature": 1.0, "top_p": 1e-12},
    {"temperature": 1.0, "min_p": 0.03},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.77, "min_p": 0.02},
    {"temperature": 3.0, "top_k": 300, "top_p": 0.83},
    {"temperature": 0},
    {"temperature": 0, "presence_penalty": 1.7},
    {"temperature": 0.8, "frequency_penalty": 0.9, "presence_penalty": -0.4},
    {"temperature": 0, "repetition_penalty": 1.9},
    {"temperature": 1.0, "repetition_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0.5, "logit_bias": {4: 6.0, 5: -100.0, 9: 2.5}},
    {"temperature": 0, "logit_bias": {7: 100.0}, "min_tokens": 6},
    {"temperature": 1.0, "top_p": 0.91, "min_tokens": 2, "logit_bias": {2: 9.0}},
]
OUTPUT = [4, 4, 9, 3, 4, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_every_param_does_what_the_oracle_does(params: dict[str, Any], dtype: torch.dtype) -> None:
    for vocab in VOCABS:
        logits = make_logits(12, vocab, seed=vocab).to(dtype)
        requests = [
            make_request(str(row), OUTPUT[: row % 7], seed=row, **params) for row in range(12)
        ]
        check(logits, requests)


@pytest.mark.parametrize("vocab", VOCABS)
def test_requests_of_all_kinds_share_a_batch(vocab: int) -> None:
    logits = make_logits(2 * len(PARAMS), vocab, seed=1)
    requests = [
        make_request(str(row), OUTPUT[: row % 7], seed=-row, choice_index=row % 3, **params)
        for row, params in enumerate(PARAMS + PARAMS[::-1])
    ]
    check(logits, requests)


def test_draw_depends_neither_on_batch_mates_nor_on_the_row() -> None:
    logits = make_logits(len(PARAMS), 1300, seed=2)
    requests = [
        make_request(str(row), OUTPUT, seed=row, **params) for row, params in enumerate(PARAMS)
    ]
    sampler = Sampler(1300)
    together = draw(sampler, logits, requests)
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(3)).tolist()
    shuffled = draw(sampler, logits[order], [requests[row] for row in order])
    assert shuffled == [together[row] for row in order]
    for row, request in enumerate(requests):
        assert draw(sampler, logits[row : row + 1], [request]) == [together[row]]


def test_draw_depends_on_seed_choice_and_position() -> None:
    logits = torch.zeros(1, 20_000)
    sampler = Sampler(20_000)
    requests = [
        make_request(seed=1),
        make_request(seed=2),
        make_request(seed=1, choice_index=1),
        make_request(output=[1], seed=1),
        make_request(seed=2**63 - 1),
        make_request(seed=-(2**63)),
    ]
    drawn = [draw(sampler, logits, [request])[0] for request in requests]
    assert len(set(drawn)) == len(drawn)
    assert drawn == [draw(Sampler(20_000), logits, [request])[0] for request in requests]


def test_ties_at_the_border_go_to_the_lower_ids() -> None:
    logits = torch.zeros(600, 100)
    logits[:, 90] = 1.0
    requests = [make_request(str(row), seed=row, top_k=4) for row in range(600)]
    assert set(draw(Sampler(100), logits, requests)) == {0, 1, 2, 90}
    # More ties than first candidates.
    logits = torch.zeros(600, 200)
    half = [make_request(str(row), seed=row, top_p=0.5) for row in range(600)]
    drawn = set(draw(Sampler(200), logits, half))
    assert drawn <= set(range(100))
    assert len(drawn) > 95


def test_top_p_counts_the_mass_of_the_top_k_alone_however_many_those_are() -> None:
    logits = make_logits(30, 4000, seed=6, scale=1.0)
    check(logits, [make_request(str(i), seed=i, top_k=1500, top_p=0.53) for i in range(30)])


def test_top_k_of_one_is_greedy_even_where_weights_round_to_equal() -> None:
    logits = torch.zeros(1, 20)
    logits[0, 9] = 1.0
    logits[0, 4] = 1.0 - 2**-24
    assert draw(Sampler(20), logits, [make_request(temperature=100, top_k=1)]) == [9]


def test_border_between_tokens_belongs_to_the_one_that_begins_there() -> None:
    weights = torch.zeros(1, 1000)
    weights[0, [130, 131, 500, 777]] = torch.tensor([1.0, 2.0, 4.0, 1.0])
    borders = {0.0: 130, 0.124: 130, 0.125: 131, 0.374: 131, 0.375: 500, 0.875: 777}
    for number, token_id in (borders | {1 - 2.0**-53: 777}).items():
        numbers = torch.tensor([number], dtype=torch.float64)
        assert pick(weights, numbers).tolist() == [token_id]


@pytest.mark.parametrize(
    "params", [{"temperature": 1.3}, {"top_p": 0.8}, {"top_k": 7}, {"min_p": 0.1}], ids=str
)
def test_tokens_come_as_often_as_their_probability_says(params: dict[str, Any]) -> None:
    vocab, count = 40, 5_000
    row = make_logits(1, vocab, seed=5, scale=1.5)
    requests = [make_request(str(i), seed=i, **params) for i in range(count)]
    drawn = torch.tensor(draw(Sampler(vocab), row.expand(count, -1), requests))
    observed = drawn.bincount(minlength=vocab).double()
    weights = weigh(row[0].tolist(), params.get("temperature", 1.0))
    kept = kept_tokens(weights, requests[0].params)
    expected = torch.zeros(vocab, dtype=torch.float64)
    expected[kept] = torch.tensor([weights[i] for i in kept], dtype=torch.float64)
    expected *= count / expected.sum()
    assert observed[expected == 0].sum() == 0
    degrees = len(kept) - 1
    chi_square = ((observed - expected) ** 2 / expected)[expected > 0].sum()
    assert float(chi_square) < degrees + 4 * math.sqrt(2 * degrees)


def test_penalties_follow_the_text_while_rows_come_and_go() -> None:
    vocab, sampler = 20, Sampler(20)
    params: dict[str, Any] = {
        "presence_penalty": 0.7,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.2,
    }
    requests = [make_request(str(i), seed=i, temperature=i % 2, **params) for i in range(8)]
    requests += [make_request(str(i), seed=i) for i in range(8, 10)]
    for step in range(60):
        # A different set of rows every few steps, also rows that left and came back.
        rows = [i for i in range(10) if (i + step // 5) % 4]
        batch = [requests[i] for i in rows]
        logits = make_logits(len(rows), vocab, seed=step, scale=1.0)
        drawn = draw(sampler, logits, batch)
        assert drawn == [expected_token(x, r) for x, r in zip(logits, batch, strict=True)]
        for request, token_id in zip(batch, drawn, strict=True):
            request.token_ids.append(token_id)


def test_no_stop_token_is_drawn_before_min_tokens() -> None:
    logits = torch.zeros(1, 50)
    logits[:, list(STOP_TOKEN_IDS)] = 100.0
    sampler = Sampler(50)
    request = make_request(min_tokens=3, seed=4)
    for _ in range(3):
        token_id = draw(sampler, logits, [request])[0]
        assert token_id not in STOP_TOKEN_IDS
        request.token_ids.append(token_id)
    assert draw(sampler, logits, [request])[0] in STOP_TOKEN_IDS


@pytest.mark.parametrize("temperature", [0, 1])
def test_min_tokens_with_every_token_a_stop_token_still_draws(temperature: float) -> None:
    request = make_request(min_tokens=3, temperature=temperature)
    request.stop_token_ids = frozenset(range(60))
    assert 0 <= draw(Sampler(50), make_logits(1, 50), [request])[0] < 50


def test_logprobs_are_the_models_own_whatever_the_sampling() -> None:
    vocab = 300
    logits = make_logits(6, vocab, seed=8).bfloat16()
    asked = [None, 0, 3, 20, None, 5]
    requests = [
        make_request(
            str(row),
            OUTPUT,
            seed=row,
            temperature=row % 2 * 0.6,
            logprobs=num,
            logit_bias={11: 5.0},
            frequency_penalty=1.0,
            top_p=0.9,
        )
        for row, num in enumerate(asked)
    ]
    expected = logits.float().log_softmax(1)
    for row, token in enumerate(Sampler(vocab).sample(logits, requests)):
        num_top = asked[row]
        if num_top is None:
            assert token.logprob is None
            continue
        assert token.logprob is not None
        assert token.logprob.token_id == token.token_id
        assert token.logprob.logprob == pytest.approx(
            float(expected[row, token.token_id]), abs=1e-5
        )
        by_rank = sorted(range(vocab), key=lambda i: (-float(logits[row, i]), i))[:num_top]
        values = [value for _, value in token.logprob.top]
        assert values == pytest.approx([float(expected[row, i]) for i in by_rank], abs=1e-5)
        assert all(
            value == pytest.approx(float(expected[row, i]), abs=1e-5)
            for i, value in token.logprob.top
        )


def test_more_logprobs_than_tokens_gives_all_tokens() -> None:
    token = Sampler(7).sample(make_logits(1, 7), [make_request(temperature=0, logprobs=20)])[0]
    assert token.logprob is not None
    assert sorted(i for i, _ in token.logprob.top) == list(range(7))
    assert token.logprob.top[0][0] == token.token_id


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_raise_and_name_the_request(
    value: float, temperature: float
) -> None:
    logits = make_logits(3, 300)
    logits[1, 130] = value
    requests = [make_request(name, temperature=temperature) for name in ("a", "culprit", "c")]
    with pytest.raises(RuntimeError, match=r"culprit$"):
        Sampler(300).sample(logits, requests)


def test_huge_and_infinitely_low_logits_are_drawn_from() -> None:
    logits = torch.full((2, 200), -math.inf)
    logits[:, 60:62] = 3e38
    requests = [make_request("a", top_p=0.9), make_request("b", temperature=1e-30, min_p=0.1)]
    assert set(draw(Sampler(200), logits, requests)) <= {60, 61}


def test_no_rows_give_no_tokens() -> None:
    assert Sampler(10).sample(torch.empty(0, 10), []) == []


def test_prompt_counts_for_the_repetition_penalty_only() -> None:
    logits = torch.ones(1, 12)
    logits[0, PROMPT[0]] = 2.0
    other: dict[str, Any] = {"temperature": 0, "presence_penalty": 2.0, "frequency_penalty": 2.0}
    sampler = Sampler(12)
    assert draw(sampler, logits, [make_request(**other)]) == [PROMPT[0]]
    repetition = make_request(temperature=0, repetition_penalty=3.0)
    assert draw(sampler, logits, [repetition]) == [0]
