"""Chooses the next token of every row, greedy or drawn. One program a row.

What a draw does is written in kernels/sampling_reference.py. The row is read once for its highest
logit, a few times for what top-k and top-p keep (kernels/gpu/token_limits.py) where they are asked
for, and once for the draw: the later readings find it in the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.token_limits import find_limits
from kernels.gpu.token_weights import load_logits, load_weights
from kernels.sampling_rows import DrawnTokens, DrawParams, SeenTokens

MAX_BLOCK = 4096
"""Tokens taken at once."""
_TOKENS_PER_WARP = 256
_MIN_TEMPERATURE = tl.constexpr(1e-6)
_DOMAIN = tl.constexpr(1)


@triton.jit
def _find_highest(
    source,
    VOCAB_SIZE: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find the highest logit and the lowest token id that has it; inf if there is a NaN."""
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.zeros([BLOCK], tl.int32)
    for start in range(0, VOCAB_SIZE, BLOCK):
        ids = start + lane
        logit = load_logits(source, ids, VOCAB_SIZE, HAS_ALLOWED, HAS_SEEN)
        # Comparisons would pass over a NaN; inf is as bad, and stays.
        logit = tl.where(logit == logit, logit, float("inf"))
        is_higher = logit > best
        best = tl.where(is_higher, logit, best)
        best_id = tl.where(is_higher, ids, best_id)
    highest = tl.max(best, axis=0)
    return highest, tl.min(tl.where(best == highest, best_id, VOCAB_SIZE), axis=0)


@triton.jit
def _make_noise(seed, position, choice_index, start, BLOCK: tl.constexpr):
    """Make the exponential noise of BLOCK tokens from `start`, a multiple of 4: float32."""
    block = start // 4 + tl.arange(0, BLOCK // 4)
    word_0, word_1, word_2, word_3 = tl.philox(seed, position, block, choice_index, _DOMAIN)
    words = tl.interleave(tl.interleave(word_0, word_2), tl.interleave(word_1, word_3))
    fraction = (words.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    # The largest words round to 1, whose noise would be infinite.
    fraction = tl.minimum(fraction, 0.999999940395355224609375)
    # log(1 - v) loses small fractions, and it is they that win.
    series = fraction * (1.0 + fraction * (0.5 + fraction * (0.3333333333 + fraction * 0.25)))
    return tl.where(fraction < 0.015625, series, -tl.log(1.0 - fraction))


@triton.jit
def _draw(
    row,
    lightest,
    num_ties,
    seed,
    position,
    choice_index,
    VOCAB_SIZE: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw a token id of what is kept, see `find_limits`."""
    lane = tl.arange(0, BLOCK)
    best = tl.zeros([BLOCK], tl.float32)
    best_id = tl.zeros([BLOCK], tl.int32)
    for start in range(0, VOCAB_SIZE, BLOCK):
        ids = start + lane
        weight, bits = load_weights(row, ids, VOCAB_SIZE, HAS_ALLOWED, HAS_SEEN)
        is_tie = bits == lightest
        num_here = tl.sum(is_tie.to(tl.int32), axis=0)
        if num_here > num_ties:
            is_tie = is_tie & (tl.cumsum(is_tie.to(tl.int32), axis=0) <= num_ties)
        num_ties -= num_here
        is_kept = is_tie | (bits > lightest)
        # Few blocks hold one of few tokens: the others need no noise.
        if tl.max(is_kept.to(tl.int32), axis=0) > 0:
            key = weight / _make_noise(seed, position, choice_index, start, BLOCK)
            is_better = is_kept & (key > best)
            best = tl.where(is_better, key, best)
            best_id = tl.where(is_better, ids, best_id)
    winner = tl.max(best, axis=0)
    return tl.min(tl.where(best == winner, best_id, VOCAB_SIZE), axis=0)


@triton.jit
def _sum_log(logits, VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Return the logarithm of the sum of exp(logit), float32."""
    lane = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB_SIZE, BLOCK):
        ids = start + lane
        logit = tl.load(logits + ids, mask=ids < VOCAB_SIZE, other=float("-inf")).to(tl.float32)
        new_highest = tl.maximum(highest, logit)
        # A lane that has seen nothing yet stays at -inf, and -inf - -inf is no number.
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        total = total * tl.exp(highest - base) + tl.exp(logit - base)
        highest = new_highest
    base = tl.max(highest, axis=0)
    return base + tl.log(tl.sum(total * tl.exp(highest - base), axis=0))


@triton.jit
def _sample_kernel(
    logits,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    choice_index,
    position,
    allowed,
    in_prompt,
    output_counts,
    repetition,
    presence,
    frequency,
    token_ids,
    logprobs,
    s_logits,
    s_allowed,
    s_prompt,
    s_counts,
    VOCAB_SIZE: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    HAS_LOGPROBS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    source = (
        logits + i * s_logits,
        allowed + i * s_allowed,
        in_prompt + i * s_prompt,
        output_counts + i * s_counts,
        tl.load(repetition + i),
        tl.load(presence + i),
        tl.load(frequency + i),
    )
    own_temperature = tl.load(temperature + i)
    own_top_k = tl.load(top_k + i)
    highest, token_id = _find_highest(source, VOCAB_SIZE, HAS_ALLOWED, HAS_SEEN, BLOCK)
    is_valid = (highest > float("-inf")) & (highest < float("inf"))
    # exp may make others as heavy as the highest: the first by rank is not left to weights.
    if is_valid & (own_temperature > 0.0) & (own_top_k != 1):
        row = (source, highest, tl.maximum(own_temperature, _MIN_TEMPERATURE))
        lightest, num_ties = find_limits(
            row,
            own_top_k,
            tl.load(top_p + i),
            tl.load(min_p + i),
            VOCAB_SIZE,
            HAS_ALLOWED,
            HAS_SEEN,
            BLOCK,
        )
        token_id = _draw(
            row,
            lightest,
            num_ties,
            tl.load(seed + i),
            tl.load(position + i),
            tl.load(choice_index + i),
            VOCAB_SIZE,
            HAS_ALLOWED,
            HAS_SEEN,
            BLOCK,
        )
    tl.store(token_ids + i, tl.where(is_valid, token_id, -1))
    if HAS_LOGPROBS:
        logprob = tl.load(logits + i * s_logits + token_id).to(tl.float32)
        logprob -= _sum_log(logits + i * s_logits, VOCAB_SIZE, BLOCK)
        tl.store(logprobs + i, tl.where(is_valid, logprob, float("nan")))


def sample(
    logits: Tensor,
    params: DrawParams,
    allowed: Tensor | None = None,
    seen: SeenTokens | None = None,
    *,
    with_logprobs: bool = False,
) -> DrawnTokens:
    """Choose the next token of every row.

    Args:
        logits: [num_rows, vocab_size] in any float dtype, rows of any stride; left as they are.
        params: how each row is drawn.
        allowed: tokens that may be chosen, [num_rows, ceil(vocab_size / 32)] int32: token i is
            bit i % 32 of word i // 32; None: all.
        seen: what was seen before and its penalties; None: there are none.
        with_logprobs: whether to return the log probability of each token.
    """
    num_rows, vocab_size = logits.shape
    assert logits.stride(1) == 1
    assert allowed is None or allowed.stride(1) == 1
    assert seen is None or seen.in_prompt.stride(1) == seen.output_counts.stride(1) == 1
    token_ids = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    logprobs = None
    if with_logprobs:
        logprobs = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    if not num_rows:
        return DrawnTokens(token_ids, logprobs)
    block = min(max(triton.next_power_of_2(vocab_size), 16), MAX_BLOCK)
    _sample_kernel[(num_rows,)](
        logits,
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        params.seed,
        params.choice_index,
        params.position,
        # In place of what is not there anything of its size will do: it is not used.
        logits if allowed is None else allowed,
        logits if seen is None else seen.in_prompt,
        logits if seen is None else seen.output_counts,
        params.temperature if seen is None else seen.repetition_penalty,
        params.temperature if seen is None else seen.presence_penalty,
        params.temperature if seen is None else seen.frequency_penalty,
        token_ids,
        token_ids if logprobs is None else logprobs,
        logits.stride(0),
        0 if allowed is None else allowed.stride(0),
        0 if seen is None else seen.in_prompt.stride(0),
        0 if seen is None else seen.output_counts.stride(0),
        VOCAB_SIZE=vocab_size,
        HAS_ALLOWED=allowed is not None,
        HAS_SEEN=seen is not None,
        HAS_LOGPROBS=logprobs is not None,
        BLOCK=block,
        num_warps=max(block // _TOKENS_PER_WARP, 1),
        # A token weighs the same in every reading, however the compiler arranges the loops.
        enable_fp_fusion=False,
    )
    return DrawnTokens(token_ids, logprobs)
