"""Finds what min-p, top-k and top-p keep of a row, without sorting it.

Weights lie in [0, 1], where float32 numbers are in the order of their bits: the lightest weight
that is kept is found by bisection on the bits, three pivots in each reading of the row. `row` is
as in kernels/gpu/token_weights.py.
"""

import triton
import triton.language as tl

from kernels.gpu.token_weights import load_weights

ONE_BITS = tl.constexpr(0x3F800000)
"""Those of 1.0, the weight of the highest logit."""


@triton.jit
def _find_threshold(
    row,
    low,
    target,
    BY_MASS: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find the largest weight such that what weighs as much or more amounts to `target`.

    Amounts are sums of weights if BY_MASS, else numbers of tokens: float32, exact for the latter.
    `low`, the bits of the smallest weight to consider, is the answer where none amounts to it.
    Returns the bits of that weight, and the amount of what weighs more.
    """
    lane = tl.arange(0, BLOCK)
    # What is sought lies from `low` to below `high`; `above` is the amount from `high` up.
    high = ONE_BITS + 1
    above = 0.0
    while high - low > 1:
        step = (high - low + 3) // 4
        first = low + step
        second = tl.minimum(first + step, high)
        third = tl.minimum(second + step, high)
        from_first = tl.zeros([BLOCK], tl.float32)
        from_second = tl.zeros([BLOCK], tl.float32)
        from_third = tl.zeros([BLOCK], tl.float32)
        least = tl.zeros([BLOCK], tl.int32) + high
        most = tl.zeros([BLOCK], tl.int32) + low
        for start in range(0, VOCAB_SIZE, BLOCK):
            weight, bits = load_weights(row, start + lane, VOCAB_SIZE, HAS_ALLOWED, HAS_SEEN)
            amount = weight if BY_MASS else tl.full([BLOCK], 1.0, tl.float32)
            from_first += tl.where(bits >= first, amount, 0.0)
            from_second += tl.where(bits >= second, amount, 0.0)
            from_third += tl.where(bits >= third, amount, 0.0)
            least = tl.minimum(least, tl.where(bits >= low, bits, high))
            most = tl.maximum(most, tl.where(bits < high, bits, low))
        at_first = tl.sum(from_first, axis=0)
        at_second = tl.sum(from_second, axis=0)
        at_third = tl.sum(from_third, axis=0)
        is_first = at_first >= target
        is_second = at_second >= target
        is_third = at_third >= target
        above = tl.where(is_second, tl.where(is_third, above, at_third), at_second)
        above = tl.where(is_first, above, at_first)
        new_high = tl.where(is_second, tl.where(is_third, high, third), second)
        new_high = tl.where(is_first, new_high, first)
        low = tl.where(is_first, first, low)
        low = tl.where(is_second, second, low)
        low = tl.where(is_third, third, low)
        # Nothing lies between neighbouring weights: where few are distinct this ends early.
        lightest = tl.min(least, axis=0)
        low = tl.where(lightest < new_high, tl.maximum(low, lightest), low)
        high = tl.minimum(new_high, tl.max(most, axis=0) + 1)
    return low, above


@triton.jit
def _measure(
    row,
    lightest,
    VOCAB_SIZE: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the weights whose bits are above `lightest`, and count those that are equal to it."""
    lane = tl.arange(0, BLOCK)
    heavier = tl.zeros([BLOCK], tl.float32)
    ties = tl.zeros([BLOCK], tl.int32)
    for start in range(0, VOCAB_SIZE, BLOCK):
        weight, bits = load_weights(row, start + lane, VOCAB_SIZE, HAS_ALLOWED, HAS_SEEN)
        heavier += tl.where(bits > lightest, weight, 0.0)
        ties += (bits == lightest).to(tl.int32)
    return tl.sum(heavier, axis=0), tl.sum(ties, axis=0)


@triton.jit
def find_limits(
    row,
    top_k,
    top_p,
    min_p,
    VOCAB_SIZE: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find what is kept: all that weighs more than some weight, and the first ids of its equals.

    Returns the bits of that weight and the number of those ids, which may be more than there are.
    """
    # Bits of numbers below 0 are below 0 too.
    lightest = tl.minimum(tl.maximum(min_p.to(tl.int32, bitcast=True), 0), ONE_BITS)
    num_ties = VOCAB_SIZE + BLOCK
    if (top_k > 0) & (top_k < VOCAB_SIZE):
        wanted = top_k.to(tl.float32)
        lightest, above = _find_threshold(
            row, lightest, wanted, False, VOCAB_SIZE, HAS_ALLOWED, HAS_SEEN, BLOCK
        )
        num_ties = top_k - above.to(tl.int32)
    if top_p < 1.0:
        heavier, ties = _measure(row, lightest, VOCAB_SIZE, HAS_ALLOWED, HAS_SEEN, BLOCK)
        weight = lightest.to(tl.float32, bitcast=True)
        total = heavier + tl.minimum(num_ties, ties).to(tl.float32) * weight
        # Never 0, so that something is kept.
        wanted = tl.maximum(top_p * total, 1e-30)
        threshold, above = _find_threshold(
            row, lightest, wanted, True, VOCAB_SIZE, HAS_ALLOWED, HAS_SEEN, BLOCK
        )
        weight = tl.maximum(threshold.to(tl.float32, bitcast=True), 1e-37)
        needed = tl.ceil(tl.minimum((wanted - above) / weight, 1.0 * VOCAB_SIZE)).to(tl.int32)
        num_ties = tl.where(threshold > lightest, needed, tl.minimum(needed, num_ties))
        lightest = threshold
    return lightest, num_ties
