"""Norm and rotation of queries and keys, and the write of keys and values to the cache.

One program has one token's heads of one KV group: its queries, its key, its value.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.weights import NormWeight


@triton.jit
def _rotate_and_store_kernel(
    heads,
    gain,
    rotation,
    kv_cache,
    slot_mapping,
    s_kv,
    s_block,
    s_head,
    k_scale,
    v_scale,
    eps,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = tl.arange(0, ROWS)[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    half: tl.constexpr = HEAD_DIM // 2
    is_head = (row < GROUP_SIZE + 2) & (pair < half)
    # Every row is read as pairs that rotate together: one 4-byte load holds both of 16 bits.
    own = heads + ((token * NUM_KV_HEADS + head) * (GROUP_SIZE + 2) + row) * HEAD_DIM
    low = tl.load(own + 2 * pair, mask=is_head, other=0.0)
    high = tl.load(own + 2 * pair + 1, mask=is_head, other=0.0)
    even, odd = low.to(tl.float32), high.to(tl.float32)
    if HAS_NORM:
        total = tl.sum(even * even + odd * odd, axis=1)[:, None]
        factor = 1.0 / tl.sqrt(total / HEAD_DIM + eps)
        is_normed = (row < GROUP_SIZE + 1) & (pair < half)
        own_gain = gain + row * HEAD_DIM + 2 * pair
        even_gain = tl.load(own_gain, mask=is_normed, other=0.0).to(tl.float32)
        odd_gain = tl.load(own_gain + 1, mask=is_normed, other=0.0).to(tl.float32)
        even = even * factor * even_gain
        odd = odd * factor * odd_gain
    angle = rotation + token * HEAD_DIM + 2 * pair
    cos = tl.load(angle, mask=pair < half, other=0.0)
    sin = tl.load(angle + 1, mask=pair < half, other=0.0)
    turned_even = even * cos - odd * sin
    turned_odd = even * sin + odd * cos
    is_query = (row < GROUP_SIZE) & (pair < half)
    tl.store(own + 2 * pair, turned_even.to(low.dtype), mask=is_query)
    tl.store(own + 2 * pair + 1, turned_odd.to(low.dtype), mask=is_query)

    slot = tl.load(slot_mapping + token).to(tl.int64)
    is_value = row == GROUP_SIZE + 1
    even = tl.where(is_value, low.to(tl.float32), turned_even)
    odd = tl.where(is_value, high.to(tl.float32), turned_odd)
    if HAS_SCALES:
        scale = tl.where(is_value, tl.load(v_scale), tl.load(k_scale))
        even = _clamp_fp8(even / scale)
        odd = _clamp_fp8(odd / scale)
    target = kv_cache + (slot // BLOCK_SIZE) * s_block + head * s_head
    target += (row - GROUP_SIZE).to(tl.int64) * s_kv + (slot % BLOCK_SIZE) * HEAD_DIM + 2 * pair
    # Padding has slot -1: its key and value belong nowhere.
    is_stored = (row >= GROUP_SIZE) & is_head & (slot >= 0)
    tl.store(target, even.to(kv_cache.dtype.element_ty), mask=is_stored)
    tl.store(target + 1, odd.to(kv_cache.dtype.element_ty), mask=is_stored)


@triton.jit
def _clamp_fp8(x):
    """Bring into the range of float8 e4m3: beyond it lies NaN."""
    return tl.minimum(tl.maximum(x, -448.0), 448.0)


def rotate_and_store(
    heads: Tensor,
    norm: NormWeight | None,
    rotation: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    scales: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Do what `ops.rotate_and_store` does.

    slot_mapping [T] int32 or int64; -1: store nowhere.
    scales: float32 scalars on the device, of keys and values; a cache in float8_e4m3fn holds what
    they divide.
    """
    num_tokens, num_kv_heads, rows, head_dim = heads.shape
    assert heads.is_contiguous()
    assert kv_cache.stride(3) == head_dim
    if not num_tokens:
        return
    k_scale, v_scale = scales or (heads, heads)  # anything: not read without scales
    _rotate_and_store_kernel[(num_tokens, num_kv_heads)](
        heads,
        heads if norm is None else norm.weight,
        torch.view_as_real(rotation),
        kv_cache,
        slot_mapping,
        kv_cache.stride(0),
        kv_cache.stride(1),
        kv_cache.stride(2),
        k_scale,
        v_scale,
        0.0 if norm is None else norm.eps,
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=rows - 2,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=kv_cache.shape[3],
        HAS_NORM=norm is not None,
        HAS_SCALES=scales is not None,
        ROWS=triton.next_power_of_2(rows),
        PAIRS=triton.next_power_of_2(head_dim // 2),
        num_warps=1,
    )
