"""Paged attention of sequences with several queries each: chunks of prompts after any prefix.

The chunk's own keys and values are in the cache already, so prefix and chunk are read alike. A tile
is some queries of one sequence times the query heads of one KV head; keys that all of them see need
no mask, which is most of a long prompt.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.attention_variant import AttentionVariant
from kernels.gpu.attention_block import (
    LOG2_E,
    MIN_ROWS,
    add_sink,
    attend_block,
    load_rows,
    precision_of,
    slot_offsets,
)
from kernels.gpu.attention_plan import PrefillPlan
from kernels.gpu.launch_config import prefill_config


@triton.jit
def _attend_range(
    first,
    end,
    last_key,
    q,
    keys,
    block_table,
    position,
    s_kv,
    s_block,
    window,
    scale,
    softcap_log2,
    highest,
    total,
    attended,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    for start in range(first, end, BLOCK_N):
        key_position = start + tl.arange(0, BLOCK_N)
        exists = key_position < last_key
        offsets = slot_offsets(block_table, key_position, exists, s_block, HEAD_DIM, BLOCK_SIZE)
        key = load_rows(keys, offsets, exists, IS_MASKED, HEAD_DIM, COLUMNS).to(q.dtype)
        value = load_rows(keys + s_kv, offsets, exists, IS_MASKED, HEAD_DIM, COLUMNS).to(q.dtype)
        seen = key_position[None, :] <= position[:, None]
        if HAS_WINDOW:
            seen = seen & (key_position[None, :] > position[:, None] - window)
        highest, total, attended = attend_block(
            q,
            key,
            value,
            seen,
            scale,
            softcap_log2,
            highest,
            total,
            attended,
            HAS_SOFTCAP,
            IS_MASKED,
            PRECISION,
        )
    return highest, total, attended


@triton.jit
def _prefill_kernel(
    query,
    kv_cache,
    block_tables,
    query_start_loc,
    seq_lens,
    tiles,
    output,
    sinks,
    k_scale,
    v_scale,
    s_query,
    s_query_head,
    s_kv,
    s_block,
    s_head,
    s_table,
    window,
    scale_log2,
    softcap_log2,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.load(tiles + 3 * tile)
    table = block_tables + tl.load(tiles + 3 * tile + 1).to(tl.int64) * s_table
    first_query = tl.load(tiles + 3 * tile + 2)
    first_token = tl.load(query_start_loc + sequence)
    num_queries = tl.load(query_start_loc + sequence + 1) - first_token
    num_computed = tl.load(seq_lens + sequence) - num_queries

    queries_per_tile: tl.constexpr = BLOCK_M // GROUP_SIZE
    row = tl.arange(0, BLOCK_M)
    column = tl.arange(0, COLUMNS)
    own_query = first_query + row // GROUP_SIZE
    is_row = (row < queries_per_tile * GROUP_SIZE) & (own_query < num_queries)
    is_query = is_row[:, None] & (column < HEAD_DIM)[None, :]
    position = num_computed + own_query
    token = (first_token + own_query).to(tl.int64)
    in_group = (row % GROUP_SIZE)[:, None] * HEAD_DIM + column[None, :]
    place = query + token[:, None] * s_query + head * s_query_head + in_group
    q = tl.load(place, mask=is_query, other=0.0)

    # Keys up to `end` are seen by somebody, those before `all_see` by everybody.
    end = num_computed + tl.minimum(first_query + queries_per_tile, num_queries)
    all_see = num_computed + first_query + 1
    first = 0
    inner_first = 0
    if HAS_WINDOW:
        first = tl.maximum(all_see - window, 0)
        inner_first = first + tl.cdiv(tl.maximum(end - window - first, 0), BLOCK_N) * BLOCK_N
    inner_end = tl.maximum(first + (all_see - first) // BLOCK_N * BLOCK_N, inner_first)

    scale = scale_log2
    if HAS_SCALES:
        scale *= tl.load(k_scale)
    keys = kv_cache + head * s_head
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    s = tl.zeros([BLOCK_M], tl.float32)
    a = tl.zeros([BLOCK_M, COLUMNS], tl.float32)
    if HAS_WINDOW:
        m, s, a = _attend_range(
            first, tl.minimum(inner_first, end), end, q, keys, table, position, s_kv, s_block,
            window, scale, softcap_log2, m, s, a, HEAD_DIM, BLOCK_SIZE, HAS_WINDOW, HAS_SOFTCAP,
            True, PRECISION, COLUMNS, BLOCK_N,
        )  # fmt: skip
    m, s, a = _attend_range(
        inner_first, inner_end, end, q, keys, table, position, s_kv, s_block,
        window, scale, softcap_log2, m, s, a, HEAD_DIM, BLOCK_SIZE, HAS_WINDOW, HAS_SOFTCAP,
        False, PRECISION, COLUMNS, BLOCK_N,
    )  # fmt: skip
    m, s, a = _attend_range(
        inner_end, end, end, q, keys, table, position, s_kv, s_block,
        window, scale, softcap_log2, m, s, a, HEAD_DIM, BLOCK_SIZE, HAS_WINDOW, HAS_SOFTCAP,
        True, PRECISION, COLUMNS, BLOCK_N,
    )  # fmt: skip

    if HAS_SCALES:
        a *= tl.load(v_scale)
    if HAS_SINKS:
        own = sinks + head * GROUP_SIZE + row % GROUP_SIZE
        s, a = add_sink(tl.load(own), m, s, a)
    result = (a / s[:, None]).to(output.dtype.element_ty)
    place = output + (token[:, None] * NUM_KV_HEADS + head) * GROUP_SIZE * HEAD_DIM + in_group
    tl.store(place, result, mask=is_query)


def attend_prefills(
    query: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    plan: PrefillPlan,
    output: Tensor,
    scale: float,
    variant: AttentionVariant,
) -> None:
    """Attend all queries of the plan's tiles.

    query [T, h, g, d], rows of any stride; output [T, h * g * d] contiguous: other rows are left;
    kv_cache as in `ops.rotate_and_store`; block_tables [rows, max_blocks] int32;
    scale: of the scores, before any softcap.
    """
    _, num_kv_heads, group_size, head_dim = query.shape
    config = prefill_config(head_dim, query.dtype)
    k_scale, v_scale = variant.scales or (output, output)  # anything: not read without scales
    _prefill_kernel[(len(plan.tiles), num_kv_heads)](
        query,
        kv_cache,
        block_tables,
        plan.query_start_loc,
        plan.seq_lens,
        plan.tiles,
        output,
        output if variant.sinks is None else variant.sinks,
        k_scale,
        v_scale,
        query.stride(0),
        query.stride(1),
        kv_cache.stride(0),
        kv_cache.stride(1),
        kv_cache.stride(2),
        block_tables.stride(0),
        variant.window or 0,
        scale * LOG2_E.value,
        (variant.softcap or 1.0) * LOG2_E.value,
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=kv_cache.shape[3],
        HAS_WINDOW=variant.window is not None,
        HAS_SOFTCAP=variant.softcap is not None,
        HAS_SINKS=variant.sinks is not None,
        HAS_SCALES=variant.scales is not None,
        PRECISION=precision_of(query.dtype),
        COLUMNS=max(triton.next_power_of_2(head_dim), MIN_ROWS),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
