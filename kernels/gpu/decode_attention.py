"""Paged attention of sequences with one query each, their keys split over programs.

One item of work is one KV head of one stretch of a sequence: all query heads of the group are the
rows of one matrix, so keys and values are read once. The number of programs is fixed and each
takes every so-many-th item, so the launch has the same shape whatever the lengths; the planner
cuts the stretches so that items are many and alike (kernels/gpu/work_list.py). A sequence of one
stretch is finished here; the others leave normalised parts for kernels/gpu/combine_parts.py.

Splitting the keys is Flash-Decoding: T. Dao, D. Haziza, F. Massa, G. Sizov, 2023; the plan made
once for all layers is that of FlashInfer, arXiv 2501.01005.
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
from kernels.gpu.attention_plan import DecodePlan
from kernels.gpu.launch_config import decode_config
from kernels.gpu.work_list import ITEM_LENGTH


@triton.jit
def _decode_kernel(
    query,
    kv_cache,
    block_tables,
    work,
    output,
    parts,
    part_sums,
    sinks,
    k_scale,
    v_scale,
    s_query,
    s_query_head,
    s_kv,
    s_block,
    s_head,
    s_table,
    scale_log2,
    softcap_log2,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ITEM_LENGTH: tl.constexpr,
):
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_query = (row < GROUP_SIZE)[:, None] & (column < HEAD_DIM)[None, :]
    places = row[:, None] * HEAD_DIM + column[None, :]
    num_items = tl.load(work) * NUM_KV_HEADS
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        head = item % NUM_KV_HEADS
        entry = work + ITEM_LENGTH * (item // NUM_KV_HEADS + 1)
        sequence = tl.load(entry).to(tl.int64)
        block_table = block_tables + tl.load(entry + 1).to(tl.int64) * s_table
        first = tl.load(entry + 2)
        end = tl.load(entry + 3)
        part = tl.load(entry + 4)

        q = tl.load(
            query + sequence * s_query + head * s_query_head + places, mask=is_query, other=0.0
        )
        scale = scale_log2
        if HAS_SCALES:
            scale *= tl.load(k_scale)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        attended = tl.zeros([ROWS, COLUMNS], tl.float32)
        keys = kv_cache + head * s_head
        for start in range(first, end, BLOCK_N):
            positions = start + tl.arange(0, BLOCK_N)
            seen = positions < end
            offsets = slot_offsets(block_table, positions, seen, s_block, HEAD_DIM, BLOCK_SIZE)
            key = load_rows(keys, offsets, seen, True, HEAD_DIM, COLUMNS).to(q.dtype)
            value = load_rows(keys + s_kv, offsets, seen, True, HEAD_DIM, COLUMNS).to(q.dtype)
            highest, total, attended = attend_block(
                q,
                key,
                value,
                seen[None, :],
                scale,
                softcap_log2,
                highest,
                total,
                attended,
                HAS_SOFTCAP,
                True,
                PRECISION,
            )
        if HAS_SCALES:
            attended *= tl.load(v_scale)
        if part < 0:
            if HAS_SINKS:
                sink = tl.load(sinks + head * GROUP_SIZE + row, mask=row < GROUP_SIZE, other=0.0)
                total, attended = add_sink(sink, highest, total, attended)
            place = output + (sequence * NUM_KV_HEADS + head) * GROUP_SIZE * HEAD_DIM + places
            result = attended / total[:, None]
            tl.store(place, result.to(output.dtype.element_ty), mask=is_query)
        else:
            index = (part.to(tl.int64) * NUM_KV_HEADS + head) * GROUP_SIZE
            tl.store(parts + index * HEAD_DIM + places, attended / total[:, None], mask=is_query)
            tl.store(part_sums + index + row, highest + tl.log2(total), mask=row < GROUP_SIZE)


def attend_decodes(
    query: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    plan: DecodePlan,
    output: Tensor,
    scale: float,
    variant: AttentionVariant,
) -> None:
    """Attend the one query of each sequence; of those that are split, only parts are made.

    query [S, h, g, d], rows of any stride; output [S, h * g * d] contiguous;
    kv_cache as in `ops.rotate_and_store`; block_tables [rows, max_blocks] int32;
    scale: of the scores, before any softcap.
    """
    _, num_kv_heads, group_size, head_dim = query.shape
    config = decode_config(head_dim, query.dtype, kv_cache.dtype)
    k_scale, v_scale = variant.scales or (plan.part_sums, plan.part_sums)
    _decode_kernel[(plan.num_programs,)](
        query,
        kv_cache,
        block_tables,
        plan.work,
        output,
        plan.parts,
        plan.part_sums,
        plan.part_sums if variant.sinks is None else variant.sinks,
        k_scale,
        v_scale,
        query.stride(0),
        query.stride(1),
        kv_cache.stride(0),
        kv_cache.stride(1),
        kv_cache.stride(2),
        block_tables.stride(0),
        scale * LOG2_E.value,
        (variant.softcap or 1.0) * LOG2_E.value,
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=kv_cache.shape[3],
        HAS_SOFTCAP=variant.softcap is not None,
        HAS_SINKS=variant.sinks is not None,
        HAS_SCALES=variant.scales is not None,
        PRECISION=precision_of(query.dtype),
        ROWS=max(triton.next_power_of_2(group_size), MIN_ROWS),
        COLUMNS=max(triton.next_power_of_2(head_dim), MIN_ROWS),
        BLOCK_N=config.block_n,
        ITEM_LENGTH=ITEM_LENGTH,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
