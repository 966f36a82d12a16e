"""The inner step of both attention kernels: one block of keys, a running softmax.

The running softmax keeps, for each row, the highest score so far, the sum of the weights relative
to it and the weighted sum of values: M. Milakov, N. Gimelshein, "Online normalizer calculation for
softmax", arXiv 1805.02867. Scores are in units of log2, so that exp2 does.
"""

import torch
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
MIN_ROWS = 16
"""Fewest rows of a matrix product on tensor cores."""


def precision_of(dtype: torch.dtype) -> str:
    """Return how products of this dtype are taken: float32 ones in full."""
    return "ieee" if dtype == torch.float32 else "tf32"


@triton.jit
def load_rows(
    start,
    offsets,
    seen,
    IS_MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Load rows of head_dim at `offsets` [N]; zeros where not `seen` [N] and past head_dim."""
    column = tl.arange(0, COLUMNS)
    places = start + offsets[:, None] + column[None, :]
    if COLUMNS != HEAD_DIM:
        return tl.load(places, mask=seen[:, None] & (column < HEAD_DIM)[None, :], other=0.0)
    if IS_MASKED:
        return tl.load(places, mask=seen[:, None], other=0.0)
    return tl.load(places)


@triton.jit
def slot_offsets(
    block_table, positions, seen, s_block, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    """Tell where in a head's cache the positions [N] lie, in elements."""
    block = tl.load(block_table + positions // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
    return block * s_block + (positions % BLOCK_SIZE) * HEAD_DIM


@triton.jit
def attend_block(
    query,
    key,
    value,
    seen,
    scale_log2,
    softcap_log2,
    highest,
    total,
    attended,
    HAS_SOFTCAP: tl.constexpr,
    IS_MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take a block of keys and values into the running softmax.

    query [M, D], key and value [N, D] in the query's dtype, seen [M, N] or [1, N] bool;
    highest, total [M] and attended [M, D] float32. Returns the last three anew.
    """
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale_log2
    if HAS_SOFTCAP:
        # tanh(y) is 2 * logistic(2 * y) - 1; scores and cap are both in units of log2.
        tanh = 2.0 / (1.0 + tl.exp2(scores / softcap_log2 * (-2.0 * LOG2_E))) - 1.0
        scores = softcap_log2 * tanh
    if IS_MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, axis=1))
    # A row that has seen nothing yet stays at -inf, and -inf - -inf is no number.
    base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    weights = tl.exp2(scores - base[:, None])
    kept = tl.exp2(highest - base)
    total = total * kept + tl.sum(weights, axis=1)
    attended = attended * kept[:, None]
    attended += tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
    return new_highest, total, attended


@triton.jit
def add_sink(sink, highest, total, attended):
    """Take a score [M] that has no value into the running softmax; return total and attended.

    The highest score is the caller's old one: only the ratio of the two results counts.
    """
    sink = sink * LOG2_E
    new_highest = tl.maximum(highest, sink)
    kept = tl.exp2(highest - new_highest)
    return total * kept + tl.exp2(sink - new_highest), attended * kept[:, None]
