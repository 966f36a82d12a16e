"""What all layers of a step share on a GPU. All integers int32, on the device."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """The leading sequences, of one query each, under one window."""

    work: Tensor
    """[1 + items, ITEM_LENGTH], see `work_list.WorkList`; there may be room for more items"""
    part_ranges: Tensor
    """[num_seqs, 2], see `work_list.WorkList`"""
    parts: Tensor
    """[max_parts, num_kv_heads, group_size, head_dim] float32, written and read in each layer"""
    part_sums: Tensor
    """[max_parts, num_kv_heads, group_size] float32: log2 of each part's sum of weights"""
    num_programs: int


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """The sequences of several queries each."""

    query_start_loc: Tensor
    """[num_seqs + 1], of all sequences of the step"""
    seq_lens: Tensor
    """[num_seqs], of all sequences of the step"""
    tiles: Tensor
    """[num_tiles, 3], see `work_list.cut_prefills`"""


@dataclass(frozen=True, slots=True)
class GpuAttentionPlan:
    """One step."""

    scale: float
    block_tables: Tensor
    """[rows, max_blocks], of every sequence that runs"""
    slot_mapping: Tensor
    """[num_tokens]; -1: store nowhere"""
    num_decodes: int
    decodes: dict[int | None, DecodePlan]
    """For each window that layers ask for; empty when there are none."""
    prefill: PrefillPlan | None
    output: Tensor
    """[num_tokens, num_heads * head_dim], overwritten in each layer"""
    scales: tuple[Tensor, Tensor] | None
    """Of keys and values in float8, see `AttentionVariant`"""
