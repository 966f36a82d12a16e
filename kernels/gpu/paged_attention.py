"""Paged attention of a whole step: sequences with one query, then those with several."""

from torch import Tensor

from kernels.attention_variant import AttentionVariant
from kernels.gpu.attention_plan import GpuAttentionPlan
from kernels.gpu.combine_parts import combine_parts
from kernels.gpu.decode_attention import attend_decodes
from kernels.gpu.prefill_attention import attend_prefills


def paged_attention(
    query: Tensor, kv_cache: Tensor, plan: GpuAttentionPlan, variant: AttentionVariant
) -> Tensor:
    """Do what `ops.paged_attention` does, with what `variant` adds."""
    num_decodes = plan.num_decodes
    if num_decodes:
        decode = plan.decodes[variant.window]
        attend_decodes(
            query[:num_decodes],
            kv_cache,
            plan.block_tables,
            decode,
            plan.output,
            plan.scale,
            variant,
        )
        combine_parts(decode, plan.output, num_decodes, variant)
    if plan.prefill is not None:
        attend_prefills(
            query, kv_cache, plan.block_tables, plan.prefill, plan.output, plan.scale, variant
        )
    return plan.output
