"""What the GPU kernels keep of a row, set against the oracle on the very same weights."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.token_limits import find_limits
from kernels.gpu.token_weights import load_weights
from kernels.sampling_reference import find_kept
from kernels.sampling_rows import DrawParams
from tests.kernels.sampling_inputs import make_params, params_on, random_logits

VOCAB_SIZE = 83
BLOCK = 32


@triton.jit
def limits_kernel(
    logits, top_k, top_p, min_p, weights, bits, ties, vocab_size: tl.constexpr, block: tl.constexpr
):
    i = tl.program_id(0)
    own = logits + i * vocab_size
    row = ((own, own, own, own, 1.0, 0.0, 0.0), 0.0, 1.0)
    lightest, num_ties = find_limits(
        row,
        tl.load(top_k + i),
        tl.load(top_p + i),
        tl.load(min_p + i),
        vocab_size,
        False,
        False,
        block,
    )
    tl.store(bits + i, lightest)
    tl.store(ties + i, num_ties)
    for start in range(0, vocab_size, block):
        ids = start + tl.arange(0, block)
        weight, _ = load_weights(row, ids, vocab_size, False, False)
        tl.store(weights + i * vocab_size + ids, weight, mask=ids < vocab_size)


def assert_kept(logits: Tensor, params: DrawParams, device: torch.device) -> None:
    """Compare for rows whose highest logit is 0."""
    logits, params = logits.to(device), params_on(device, params)
    weights = torch.full_like(logits, torch.nan)
    bits = torch.full((len(logits),), -7, dtype=torch.int32, device=device)
    ties = torch.full_like(bits, -7)
    limits_kernel[(len(logits),)](
        logits,
        params.top_k,
        params.top_p,
        params.min_p,
        weights,
        bits,
        ties,
        vocab_size=VOCAB_SIZE,
        block=BLOCK,
    )
    torch.testing.assert_close(weights, logits.exp())
    lightest = bits.view(torch.float32)[:, None]
    is_tie = weights == lightest
    kept = (weights > lightest) | (is_tie & (is_tie.cumsum(1) <= ties[:, None]))
    # Of tokens that weigh nothing it does not matter whether they are kept.
    assert torch.equal(kept & (weights > 0), find_kept(weights, params))


def rows_of(kind: str, num_rows: int) -> Tensor:
    logits = random_logits(num_rows, VOCAB_SIZE)
    if kind == "coarse":
        logits = logits.round()
    elif kind == "equal":
        logits = torch.zeros_like(logits)
    elif kind == "spike":
        logits[:, 50] = 300.0  # all others weigh nothing in float32
    elif kind == "two levels":
        logits = (logits > 0).float()
    elif kind == "forbidden":
        logits[:, ::3] = -torch.inf
    return logits - logits.amax(1, keepdim=True)


KINDS = ["continuous", "coarse", "equal", "spike", "two levels", "forbidden"]


@pytest.mark.parametrize("kind", KINDS)
def test_top_k(kind: str, device: torch.device) -> None:
    top_k = [1, 2, 5, 31, 64, VOCAB_SIZE - 1, VOCAB_SIZE]
    logits = rows_of(kind, len(top_k))
    assert_kept(logits, make_params(len(top_k), VOCAB_SIZE, top_k=top_k), device)


@pytest.mark.parametrize("kind", KINDS)
def test_top_p(kind: str, device: torch.device) -> None:
    top_p = [1e-7, 0.1, 0.33, 0.6, 0.9, 0.999, 1]
    logits = rows_of(kind, len(top_p))
    assert_kept(logits, make_params(len(top_p), VOCAB_SIZE, top_p=top_p), device)


@pytest.mark.parametrize("kind", KINDS)
def test_filters_together(kind: str, device: torch.device) -> None:
    params = make_params(
        6,
        VOCAB_SIZE,
        top_k=[3, 40, 10, VOCAB_SIZE, 2 * VOCAB_SIZE, 40],
        top_p=[0.5, 0.95, 1, 0.7, 0.8, 0.2],
        min_p=[0, 0.01, 0.05, 1, 0.2, 0],
    )
    assert_kept(rows_of(kind, 6), params, device)
