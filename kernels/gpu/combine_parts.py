"""Puts together what the stretches of each split sequence gave. One program a KV head of one."""

import triton
import triton.language as tl
from torch import Tensor

from kernels.attention_variant import AttentionVariant
from kernels.gpu.attention_block import add_sink
from kernels.gpu.attention_plan import DecodePlan


@triton.jit
def _combine_kernel(
    parts,
    part_sums,
    part_ranges,
    sinks,
    output,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.load(part_ranges + 2 * sequence).to(tl.int64)
    num_parts = tl.load(part_ranges + 2 * sequence + 1)
    if num_parts > 0:
        row = tl.arange(0, ROWS)
        column = tl.arange(0, COLUMNS)
        is_query = (row < GROUP_SIZE)[:, None] & (column < HEAD_DIM)[None, :]
        places = row[:, None] * HEAD_DIM + column[None, :]
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        attended = tl.zeros([ROWS, COLUMNS], tl.float32)
        for i in range(num_parts):
            index = ((first + i) * NUM_KV_HEADS + head) * GROUP_SIZE
            value = tl.load(parts + index * HEAD_DIM + places, mask=is_query, other=0.0)
            log_sum = tl.load(part_sums + index + row, mask=row < GROUP_SIZE, other=0.0)
            new_highest = tl.maximum(highest, log_sum)
            kept = tl.exp2(highest - new_highest)
            weight = tl.exp2(log_sum - new_highest)
            total = total * kept + weight
            attended = attended * kept[:, None] + value * weight[:, None]
            highest = new_highest
        if HAS_SINKS:
            sink = tl.load(sinks + head * GROUP_SIZE + row, mask=row < GROUP_SIZE, other=0.0)
            total, attended = add_sink(sink, highest, total, attended)
        place = output + (sequence * NUM_KV_HEADS + head) * GROUP_SIZE * HEAD_DIM + places
        result = attended / total[:, None]
        tl.store(place, result.to(output.dtype.element_ty), mask=is_query)


def combine_parts(
    plan: DecodePlan, output: Tensor, num_seqs: int, variant: AttentionVariant
) -> None:
    """Finish the rows of `output` [S, h * g * d] whose sequences were split; leave the others."""
    _, num_kv_heads, group_size, head_dim = plan.parts.shape
    _combine_kernel[(num_seqs, num_kv_heads)](
        plan.parts,
        plan.part_sums,
        plan.part_ranges,
        plan.part_sums if variant.sinks is None else variant.sinks,
        output,
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        HAS_SINKS=variant.sinks is not None,
        ROWS=triton.next_power_of_2(group_size),
        COLUMNS=triton.next_power_of_2(head_dim),
        num_warps=1 if head_dim <= 64 else 2,
    )
