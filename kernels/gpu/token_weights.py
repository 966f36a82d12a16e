"""What the tokens of a row weigh when one is drawn: penalties, bitmask, the softmax's numerator.

`source` stands for a row of logits: pointers to its logits, allowed bits, prompt bits and output
counts, and its repetition, presence and frequency penalty. Bits and penalties are not looked at
unless HAS_ALLOWED and HAS_SEEN.
"""

import triton
import triton.language as tl


@triton.jit
def _test_bits(words, ids, is_token):
    """Tell which bits `ids` [N] of a row of int32 words are set."""
    word = tl.load(words + (ids >> 5), mask=is_token, other=0)
    return ((word >> (ids & 31)) & 1) != 0


@triton.jit
def load_logits(
    source, ids, VOCAB_SIZE: tl.constexpr, HAS_ALLOWED: tl.constexpr, HAS_SEEN: tl.constexpr
):
    """Load the logits of tokens `ids` [N] as they are drawn from: float32, -inf for no token."""
    logits, allowed, in_prompt, output_counts, repetition, presence, frequency = source
    is_token = ids < VOCAB_SIZE
    logit = tl.load(logits + ids, mask=is_token, other=0.0).to(tl.float32)
    if HAS_SEEN:
        count = tl.load(output_counts + ids, mask=is_token, other=0)
        in_output = count > 0
        is_seen = in_output | _test_bits(in_prompt, ids, is_token)
        by = tl.where(is_seen, repetition, 1.0)
        logit = tl.where(logit > 0, logit / by, logit * by)
        logit -= count.to(tl.float32) * frequency + tl.where(in_output, presence, 0.0)
    if HAS_ALLOWED:
        is_token = is_token & _test_bits(allowed, ids, is_token)
    return tl.where(is_token, logit, float("-inf"))


@triton.jit
def load_weights(
    row, ids, VOCAB_SIZE: tl.constexpr, HAS_ALLOWED: tl.constexpr, HAS_SEEN: tl.constexpr
):
    """Load what tokens `ids` [N] weigh: float32, and their bits as int32; 0 for no token.

    `row` is source, highest logit, temperature. The highest logit weighs 1.
    """
    source, highest, temperature = row
    logit = load_logits(source, ids, VOCAB_SIZE, HAS_ALLOWED, HAS_SEEN)
    weight = tl.exp((logit - highest) / temperature)
    return weight, weight.to(tl.int32, bitcast=True)
