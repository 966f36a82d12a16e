"""The attention kernels alone: bytes of decode over copying, products of prefill over a matmul."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from kernels.attention_variant import PLAIN
from kernels.gpu.attention_planner import GpuAttentionPlanner
from kernels.gpu.paged_attention import paged_attention
from kernels.layout import AttentionGeometry, StepLayout
from tests.benchmarks.gpu.timing import Ceilings, device_seconds, graph_seconds

_CUDA = torch.device("cuda")
_HEADS = (8, 4, 128)
"""KV heads, group size and head size of Llama 3.1 8B"""
_DECODES = [(1, 1024), (1, 32768), (8, 1024), (8, 8192), (64, 1024), (64, 8192), (256, 1024)]
_PREFILLS = [(1, 2048), (1, 8192), (8, 1024)]
_BLOCK_SIZE = 16
_MAX_CACHE_TOKENS = 64 * 8192
_CACHE_BYTES = 200 << 20


def measure_attention(ceilings: Ceilings) -> Iterator[dict[str, Any]]:
    """Yield a row for each shape."""
    num_kv_heads, group_size, head_dim = _HEADS
    geometry = AttentionGeometry(
        _MAX_CACHE_TOKENS // _BLOCK_SIZE, _BLOCK_SIZE, *_HEADS, torch.bfloat16
    )
    kv_cache = torch.randn(geometry.cache_shape, dtype=torch.bfloat16, device=_CUDA)
    for num_seqs, length in _DECODES:
        num_bytes = 2 * num_seqs * length * num_kv_heads * head_dim * 2
        # Each call reads blocks of its own, until together they exceed any cache.
        num_calls = min(-(-_CACHE_BYTES // num_bytes), _MAX_CACHE_TOKENS // (num_seqs * length), 32)
        query = torch.randn(num_seqs, *_HEADS, dtype=torch.bfloat16, device=_CUDA)
        runs = []
        for call in range(num_calls):
            planner = GpuAttentionPlanner(geometry, frozenset([None]), _CUDA)
            plan = planner.plan(_layout(num_seqs, length, 1, call))
            runs.append(partial(paged_attention, query, kv_cache, plan, PLAIN))
        seconds = graph_seconds(runs)
        rate = num_bytes / seconds / 1e9
        yield {
            "what": f"decode attention {num_seqs} x {length}",
            "MB": num_bytes / 1e6,
            "us": seconds * 1e6,
            "GB/s": rate,
            "of ceiling": rate / ceilings.gb_per_s,
        }
    planner = GpuAttentionPlanner(geometry, frozenset([None]), _CUDA)
    for num_seqs, length in _PREFILLS:
        plan = planner.plan(_layout(num_seqs, length, length))
        query = torch.randn(num_seqs * length, *_HEADS, dtype=torch.bfloat16, device=_CUDA)
        seconds = device_seconds(partial(paged_attention, query, kv_cache, plan, PLAIN))
        # Two products, over half of the square.
        num_flops = 2 * num_seqs * length**2 * num_kv_heads * group_size * head_dim
        rate = num_flops / seconds / 1e12
        yield {
            "what": f"prefill attention {num_seqs} x {length}",
            "us": seconds * 1e6,
            "TFLOP/s": rate,
            "of ceiling": rate / ceilings.tflop_per_s,
        }


def _layout(num_seqs: int, length: int, num_queries: int, call: int = 0) -> StepLayout:
    """Sequences whose blocks lie scattered over a part of the cache that is the call's own."""
    num_blocks = -(-length // _BLOCK_SIZE)
    order = np.random.default_rng(0).permutation(num_seqs * num_blocks).astype(np.int32)
    order += call * num_seqs * num_blocks
    tables = order.reshape(num_seqs, num_blocks)
    positions = np.arange(length - num_queries, length)
    slots = tables[:, positions // _BLOCK_SIZE] * _BLOCK_SIZE + positions % _BLOCK_SIZE
    starts = np.arange(num_seqs + 1, dtype=np.int32) * num_queries
    lens = np.full(num_seqs, length, dtype=np.int32)
    rows = np.arange(num_seqs, dtype=np.int32)
    return StepLayout(starts, lens, tables, slots.reshape(-1).astype(np.int32), rows)
