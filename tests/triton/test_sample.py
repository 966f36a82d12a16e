"""The sampling kernel against its oracle: the same tokens, for every dtype and ask."""

import math

import pytest
import torch
from torch import Tensor

from kernels import sampling_reference
from kernels.gpu import sample as kernel
from kernels.sampling_rows import DrawnTokens, DrawParams, SeenTokens
from tests.kernels.sampling_inputs import (
    Values,
    make_params,
    pack_bits,
    params_on,
    random_bits,
    random_logits,
    random_seen,
    seen_on,
    take_rows,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ASKS: dict[str, dict[str, Values]] = {
    "plain": {},
    "temperatures": {"temperature": [0.01, 0.7, 1.3, 5, 100]},
    "greedy": {"temperature": 0},
    "greedy among others": {"temperature": [0, 1, 0, 0.8, 1], "top_k": [9, 1, 1, 40, 2]},
    "top-k": {"temperature": 3, "top_k": [2, 5, 17, 49, 3]},
    "top-p": {"temperature": 3, "top_p": [0.1, 0.5, 0.8, 0.95, 1]},
    "min-p": {"temperature": 3, "min_p": [0, 0.05, 0.2, 0.7, 1]},
    "all filters": {"temperature": 4, "top_k": 20, "top_p": 0.9, "min_p": [0, 0.01, 0, 0.1, 0]},
    "seeds": {"seed": [0, -1, 2**62 + 1, -(2**63), 2**63 - 1], "choice_index": [0, 1, 127, 2, 3]},
}


class DeviceSampler:
    """The kernel where it runs; what it is given and returns may lie on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def sample(
        self,
        logits: Tensor,
        params: DrawParams,
        allowed: Tensor | None = None,
        seen: SeenTokens | None = None,
        *,
        with_logprobs: bool = False,
    ) -> DrawnTokens:
        drawn = kernel.sample(
            logits.to(self._device),
            params_on(self._device, params),
            None if allowed is None else allowed.to(self._device),
            None if seen is None else seen_on(self._device, seen),
            with_logprobs=with_logprobs,
        )
        logprobs = None if drawn.logprobs is None else drawn.logprobs.cpu()
        return DrawnTokens(drawn.token_ids.cpu(), logprobs)

    def assert_right(
        self,
        logits: Tensor,
        params: DrawParams,
        allowed: Tensor | None = None,
        seen: SeenTokens | None = None,
    ) -> DrawnTokens:
        before = logits.cpu().clone()
        drawn = self.sample(logits, params, allowed, seen, with_logprobs=True)
        expected = sampling_reference.sample(before, params, allowed, seen, with_logprobs=True)
        assert drawn.token_ids.dtype == torch.int32
        assert drawn.token_ids.tolist() == expected.token_ids.tolist()
        assert drawn.logprobs is not None
        torch.testing.assert_close(drawn.logprobs, expected.logprobs, equal_nan=True)
        torch.testing.assert_close(logits.cpu(), before, rtol=0, atol=0, equal_nan=True)
        return drawn


@pytest.fixture
def sampler(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> DeviceSampler:
    """Takes several blocks a row, and no output can pass by being left as it was."""
    empty = torch.empty

    def dirty(*size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        tensor = empty(*size, dtype=dtype, device=device)
        return tensor.fill_(math.nan if dtype.is_floating_point else -77)

    monkeypatch.setattr(torch, "empty", dirty)
    monkeypatch.setattr(kernel, "MAX_BLOCK", 64)
    return DeviceSampler(device)


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_those_of_the_oracle(
    ask: str, dtype: torch.dtype, sampler: DeviceSampler
) -> None:
    logits = random_logits(5, 101, dtype)
    sampler.assert_right(logits, make_params(5, 101, **ASKS[ask]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bitmask_and_penalties(dtype: torch.dtype, sampler: DeviceSampler) -> None:
    logits = random_logits(4, 131, dtype)
    bits = random_bits(4, 131, 0.3)
    params = make_params(4, 131, temperature=[0, 3, 3, 3], top_k=[9, 131, 12, 20])
    sampler.assert_right(logits, params, None, random_seen(4, 131))
    drawn = sampler.assert_right(logits, params, pack_bits(bits), random_seen(4, 131))
    assert bits[torch.arange(4), drawn.token_ids.long()].all()


@pytest.mark.parametrize("vocab_size", [1, 2, 15, 64, 65, 1000])
def test_any_vocabulary_size(vocab_size: int, sampler: DeviceSampler) -> None:
    params = make_params(3, vocab_size, temperature=[0, 2, 2], top_p=[1, 1, 0.8])
    bits = pack_bits(random_bits(3, vocab_size, 0.7))
    sampler.assert_right(random_logits(3, vocab_size), params, bits)


def test_lowest_id_wins_among_equals(sampler: DeviceSampler) -> None:
    logits = torch.zeros(4, 150, dtype=torch.bfloat16)
    logits[:, [70, 71, 140]] = 2.0
    params = make_params(4, 150, temperature=[0, 1, 1, 1], top_k=[150, 1, 2, 5], top_p=0.999)
    drawn = sampler.assert_right(logits, params).token_ids.tolist()
    assert drawn[:2] == [70, 70]
    assert drawn[2] in (70, 71)
    assert drawn[3] in (0, 1, 70, 71, 140)


# NaN and inf make numpy, which the interpreter computes with, warn.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_row_that_is_not_finite_has_no_token_and_leaves_others_alone(
    sampler: DeviceSampler,
) -> None:
    logits = random_logits(5, 90)
    params = make_params(5, 90, temperature=[1, 0, 1, 1, 1], top_k=[90, 90, 5, 90, 5])
    expected = sampler.sample(logits, params).token_ids.tolist()
    logits[0, 80] = math.nan
    logits[1] = math.nan
    logits[2] = -math.inf
    logits[3, 0] = math.inf
    drawn = sampler.assert_right(logits, params).token_ids.tolist()
    assert drawn == [-1, -1, -1, -1, expected[4]]


def test_row_without_allowed_token_has_none(sampler: DeviceSampler) -> None:
    bits = random_bits(2, 90, 0.5)
    bits[0] = False
    drawn = sampler.assert_right(random_logits(2, 90), make_params(2, 90), pack_bits(bits))
    assert drawn.token_ids[0] == -1
    assert drawn.token_ids[1] >= 0


def test_rows_of_any_stride(sampler: DeviceSampler, device: torch.device) -> None:
    wide = torch.full((3, 200), 1e4, device=device)
    wide[:, :99] = random_logits(3, 99).to(device)
    seen = seen_on(device, random_seen(3, 99))
    counts = torch.full((3, 120), 9, dtype=torch.int32, device=device)
    counts[:, :99] = seen.output_counts
    penalties = (seen.repetition_penalty, seen.presence_penalty, seen.frequency_penalty)
    strided = SeenTokens(*penalties, seen.in_prompt, counts[:, :99])
    params = make_params(3, 99, top_p=0.9)
    drawn = sampler.sample(wide[:, :99], params, None, strided).token_ids.tolist()
    plain = sampler.assert_right(random_logits(3, 99), params, None, random_seen(3, 99))
    assert drawn == plain.token_ids.tolist()


def test_draw_is_the_same_in_another_batch_and_beside_other_asks(sampler: DeviceSampler) -> None:
    logits = random_logits(5, 120)
    params = make_params(5, 120, temperature=2, top_k=[120, 30, 120, 7, 120])
    together = sampler.sample(logits, params).token_ids.tolist()
    order = [4, 1, 3]
    assert sampler.sample(logits[order], take_rows(params, order)).token_ids.tolist() == [
        together[row] for row in order
    ]
    later = make_params(5, 120, temperature=2, position=[row + 5 for row in range(5)])
    assert sampler.sample(logits, later).token_ids.tolist() != together


def test_no_rows(sampler: DeviceSampler) -> None:
    drawn = sampler.sample(torch.zeros(0, 9), make_params(0, 9))
    assert drawn.token_ids.shape == (0,)
    assert drawn.logprobs is None


def test_tokens_are_drawn_as_often_as_they_weigh(sampler: DeviceSampler) -> None:
    count = 150
    chances = torch.tensor([0.4, 0.3, 0.2, 0.1])
    # The last is below min-p.
    logits = torch.cat((chances, torch.tensor([0.005]))).log()
    drawn = sampler.sample(logits.expand(count, 5), make_params(count, 5, min_p=0.02)).token_ids
    counts = torch.bincount(drawn, minlength=5)
    assert counts[4] == 0
    expected = count * chances
    chi_square = float(((counts[:4] - expected) ** 2 / expected).sum())
    assert chi_square < 16.3  # 3 degrees of freedom: 0.1 %
