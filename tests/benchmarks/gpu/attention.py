"""The attention kernels alone: bytes of decode over copying, products of prefill over a matmul."""

from functools import partial

import numpy as np
import torch

from kernels.attention_variant import PLAIN
from kernels.gpu.attention_planner import GpuAttentionPlanner
from kernels.gpu.paged_attention import paged_attention
from kernels.layout import AttentionGeometry, StepLayout
from tests.benchmarks.gpu.bench import Bench, Rows
from tests.benchmarks.gpu.device import device_seconds


def measure_attention(bench: Bench) -> Rows:
    """Yield a row for each shape."""
    sizes, place = bench.sizes, bench.device.place
    num_tokens, block_size = sizes.num_attention_tokens, sizes.block_size
    num_blocks = -(-num_tokens // block_size)
    geometry = AttentionGeometry(num_blocks, block_size, *sizes.heads, torch.bfloat16)
    kv_cache = torch.randn(geometry.cache_shape, dtype=torch.bfloat16, device=place)
    width = sizes.num_kv_heads * sizes.head_dim
    for num_seqs, length in sizes.decode_attention:
        # Keys and values, queries and results.
        num_bytes = 4 * num_seqs * width * (length + sizes.group_size)
        query = torch.randn(num_seqs, *sizes.heads, dtype=torch.bfloat16, device=place)
        runs = []
        for call in range(min(bench.num_copies(num_bytes), num_tokens // (num_seqs * length))):
            planner = GpuAttentionPlanner(geometry, frozenset([None]), place)
            plan = planner.plan(_layout(num_seqs, length, 1, block_size, call))
            runs.append(partial(paged_attention, query, kv_cache, plan, PLAIN))
        yield bench.row(f"decode attention {num_seqs} x {length}", runs, num_bytes)
    planner = GpuAttentionPlanner(geometry, frozenset([None]), place)
    for num_seqs, length in sizes.prefill_attention:
        plan = planner.plan(_layout(num_seqs, length, length, block_size))
        query = torch.randn(num_seqs * length, *sizes.heads, dtype=torch.bfloat16, device=place)
        run = partial(paged_attention, query, kv_cache, plan, PLAIN)
        seconds = device_seconds(bench.device, run, sizes.repeats)
        num_bytes = 4 * num_seqs * width * length * (1 + sizes.group_size)
        # Two products, over half of the square.
        num_flops = 2 * num_seqs * length**2 * width * sizes.group_size
        yield bench.kernel_row(
            f"prefill attention {num_seqs} x {length}", seconds, num_bytes, num_flops
        )


def _layout(
    num_seqs: int, length: int, num_queries: int, block_size: int, call: int = 0
) -> StepLayout:
    """Sequences whose blocks lie scattered over a part of the cache that is the call's own."""
    num_blocks = -(-length // block_size)
    order = np.random.default_rng(0).permutation(num_seqs * num_blocks).astype(np.int32)
    order += call * num_seqs * num_blocks
    tables = order.reshape(num_seqs, num_blocks)
    positions = np.arange(length - num_queries, length)
    slots = tables[:, positions // block_size] * block_size + positions % block_size
    starts = np.arange(num_seqs + 1, dtype=np.int32) * num_queries
    lens = np.full(num_seqs, length, dtype=np.int32)
    rows = np.arange(num_seqs, dtype=np.int32)
    return StepLayout(starts, lens, tables, slots.reshape(-1).astype(np.int32), rows)
