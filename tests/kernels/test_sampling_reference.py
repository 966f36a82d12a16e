"""The oracle of sampling: against what the engine's sampler keeps, and exact distributions."""

import math

import pytest
import torch
from torch import Tensor

from engine.sampling_params import SamplingParams
from kernels.sampling_reference import find_kept, first_highest, noise, penalise, sample
from kernels.sampling_rows import SeenTokens
from tests.engine.sampling_oracle import PROMPT, kept_tokens, make_request, processed_logits
from tests.kernels.sampling_inputs import (
    make_params,
    pack_bits,
    random_bits,
    random_logits,
    random_seen,
    take_rows,
)

FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.1},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.01},
    {"top_k": 3, "top_p": 0.01},
]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_what_the_engine_keeps(filters: dict[str, float], dtype: torch.dtype) -> None:
    # Normal logits in bfloat16 have many ties.
    logits = random_logits(6, 97, dtype).float()
    weights = (logits - logits.amax(1, keepdim=True)).exp()
    kept = find_kept(weights, make_params(6, 97, **filters))
    params = SamplingParams(**filters)  # type: ignore[arg-type]
    for row, own in zip(kept, weights.tolist(), strict=True):
        assert row.nonzero()[:, 0].tolist() == sorted(kept_tokens(own, params))


def test_penalties_are_those_of_the_engine() -> None:
    output = [9, 3, 9, 1]
    logits = random_logits(1, 12)
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": -0.25}
    request = make_request(output=output, **penalties)  # type: ignore[arg-type]
    counts = torch.bincount(torch.tensor(output), minlength=12).int()[None]
    in_prompt = torch.zeros(1, 12, dtype=torch.bool)
    in_prompt[0, PROMPT] = True
    spread = {name: torch.tensor([value]) for name, value in penalties.items()}
    seen = SeenTokens(**spread, in_prompt=pack_bits(in_prompt), output_counts=counts)
    expected = torch.tensor(processed_logits(logits[0], request))
    torch.testing.assert_close(penalise(logits, seen)[0], expected)


def test_greedy_rows_take_the_lowest_id_of_the_highest() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]]).expand(3, 4)
    params = make_params(3, 4, temperature=[0, 1, 0], top_k=[4, 1, 2])
    assert sample(logits, params).token_ids.tolist() == [1, 1, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_row_that_is_not_finite_has_no_token(bad: float) -> None:
    logits = random_logits(3, 40)
    expected = sample(logits, make_params(3, 40)).token_ids.tolist()
    logits[1, 17] = bad
    drawn = sample(logits, make_params(3, 40), with_logprobs=True)
    assert drawn.token_ids.tolist() == [expected[0], -1, expected[2]]
    assert drawn.logprobs is not None
    assert drawn.logprobs.isnan().tolist() == [False, True, False]


def test_row_without_allowed_token_has_none() -> None:
    bits = random_bits(2, 40, 0.5)
    bits[1] = False
    token_ids = sample(random_logits(2, 40), make_params(2, 40), pack_bits(bits)).token_ids
    assert bits[0, int(token_ids[0])]
    assert token_ids[1] == -1


def test_log_probability_is_that_of_the_logits_as_they_came() -> None:
    logits = random_logits(4, 33)
    allowed = pack_bits(random_bits(4, 33, 0.3))
    drawn = sample(logits, make_params(4, 33), allowed, random_seen(4, 33), with_logprobs=True)
    expected = logits.log_softmax(1)[torch.arange(4), drawn.token_ids.long()]
    assert drawn.logprobs is not None
    torch.testing.assert_close(drawn.logprobs, expected)


def test_draw_is_the_same_in_another_batch() -> None:
    logits = random_logits(5, 60, seed=4)
    params = make_params(5, 60, top_p=[1, 0.9, 0.5, 1, 0.7], choice_index=[0, 1, 2, 0, 5])
    order = [3, 1, 4]
    token_ids = sample(logits, params).token_ids
    assert sample(logits[order], take_rows(params, order)).token_ids.tolist() == [
        int(token_ids[row]) for row in order
    ]


@pytest.mark.parametrize("axis", ["seed", "position", "choice_index"])
def test_tokens_are_drawn_as_often_as_they_weigh(axis: str) -> None:
    count, vocab_size = 20_000, 11
    logits = random_logits(1, vocab_size)
    values = dict.fromkeys(("seed", "position", "choice_index"), [3] * count)
    values[axis] = list(range(count))
    params = make_params(count, vocab_size, temperature=1.5, **values)
    drawn = sample(logits.expand(count, vocab_size), params).token_ids
    assert_distributed(drawn, (logits[0] / 1.5).softmax(0))


def test_kept_tokens_are_drawn_as_often_as_they_weigh() -> None:
    count, vocab_size = 20_000, 50
    logits = random_logits(1, vocab_size)
    params = make_params(count, vocab_size, temperature=3, top_k=12, top_p=0.97)
    drawn = sample(logits.expand(count, vocab_size), params).token_ids
    weights = ((logits - logits.amax()) / 3).exp()
    kept = weights * find_kept(weights, take_rows(params, [0]))
    assert 3 < int((kept > 0).sum()) < 13
    assert_distributed(drawn, kept[0] / kept.sum())


def assert_distributed(drawn: Tensor, chances: Tensor) -> None:
    expected = chances * len(drawn)
    counts = torch.bincount(drawn.long(), minlength=len(chances))
    assert (counts[expected == 0] == 0).all()
    # Rare tokens are thrown together: chi-square wants 5 of each kind.
    is_rare = expected < 5
    expected = torch.cat((expected[~is_rare], expected[is_rare].sum()[None]))
    counts = torch.cat((counts[~is_rare], counts[is_rare].sum()[None]))
    freedom = len(expected) - 1
    chi_square = float(((counts - expected) ** 2 / expected.clamp(min=1)).sum())
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 5


def test_tokens_of_equal_weight_are_drawn_alike_however_many() -> None:
    # Where noise is coarse, low ids win the ties among the smallest.
    count, vocab_size = 2000, 4096
    params = make_params(count, vocab_size, seed=1)
    winners = first_highest(1 / noise(params, vocab_size))
    histogram = torch.histc(winners.float(), bins=16, min=0, max=vocab_size)
    chi_square = float(((histogram - count / 16) ** 2 / (count / 16)).sum())
    assert chi_square < 45  # 15 degrees of freedom: 0.01 %


def test_noise_is_exponential_and_never_infinite() -> None:
    values = noise(make_params(50, 4001), 4001)
    assert values.shape == (50, 4001)
    assert values.dtype == torch.float32
    assert float(values.min()) > 0
    assert float(values.max()) < 17
    assert float(values.mean()) == pytest.approx(1, abs=0.01)
    assert float((values > 3).float().mean()) == pytest.approx(math.exp(-3), abs=0.002)
