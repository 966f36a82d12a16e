"""Rotation, cache and attention kernels against plain torch over the same cache."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.attention_variant import PLAIN, AttentionVariant
from kernels.gpu import attention_planner
from kernels.gpu.attention_planner import GpuAttentionPlanner
from kernels.gpu.paged_attention import paged_attention
from kernels.gpu.rotate_and_store import rotate_and_store
from kernels.layout import AttentionGeometry, StepLayout
from kernels.weights import NormWeight

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
DTYPES = list(TOLERANCES)


@dataclass(frozen=True)
class Case:
    """Shapes, and sequences of (length, queries), single queries first."""

    sequences: Sequence[tuple[int, int]]
    group_size: int = 3
    head_dim: int = 16
    block_size: int = 16
    num_kv_heads: int = 2
    dtype: torch.dtype = torch.float32

    @property
    def geometry(self) -> AttentionGeometry:
        return AttentionGeometry(
            160, self.block_size, self.num_kv_heads, self.group_size, self.head_dim, self.dtype
        )


DECODES = [(1, 1), (16, 1), (17, 1), (200, 1), (600, 1)]
STORED = [(1, 1), (40, 3), (21, 8)]
PREFILLS = [(1, 1), (5, 5), (70, 3), (64, 64), (130, 50)]


def layout_of(case: Case, seed: int = 0) -> StepLayout:
    size = case.block_size
    seq_lens = np.array([length for length, _ in case.sequences], dtype=np.int32)
    counts = np.array([count for _, count in case.sequences], dtype=np.int32)
    num_blocks = -(-seq_lens // size)
    block_ids = np.random.default_rng(seed).permutation(case.geometry.num_blocks).astype(np.int32)
    assert num_blocks.sum() < len(block_ids)
    # What lies past a sequence's end names a block of nobody.
    tables = np.full((len(seq_lens), num_blocks.max() + 1), block_ids[-1], dtype=np.int32)
    first = 0
    for i, num in enumerate(num_blocks.tolist()):
        tables[i, :num] = block_ids[first : first + num]
        first += num
    slots = [
        tables[i, np.arange(n - k, n) // size] * size + np.arange(n - k, n) % size
        for i, (n, k) in enumerate(case.sequences)
    ]
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    slot_mapping = np.concatenate(slots).astype(np.int32)
    # Rows in another order than the sequences, and not all of them.
    rows = 2 * np.arange(len(seq_lens), dtype=np.int32)[::-1]
    return StepLayout(starts, seq_lens, tables, slot_mapping, np.ascontiguousarray(rows))


def cache_of(case: Case, layout: StepLayout, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A cache that is NaN wherever no sequence has a position."""
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(case.geometry.cache_shape, generator=generator)
    is_used = torch.zeros(case.geometry.num_blocks, case.block_size, dtype=torch.bool)
    for table, length in zip(layout.block_tables, layout.seq_lens.tolist(), strict=True):
        for position in range(length):
            is_used[table[position // case.block_size], position % case.block_size] = True
    values = torch.where(is_used[None, :, None, :, None], values, torch.nan)
    return values.to(device, dtype)


def check(case: Case, variant: AttentionVariant, device: torch.device) -> None:
    geometry, layout = case.geometry, layout_of(case)
    cache_dtype = torch.float8_e4m3fn if variant.scales else case.dtype
    kv_cache = cache_of(case, layout, cache_dtype, device)
    generator = torch.Generator().manual_seed(1)
    shape = (layout.num_tokens, geometry.num_kv_heads, geometry.group_size + 2, geometry.head_dim)
    heads = torch.randn(shape, generator=generator).to(device, case.dtype)
    query = heads[:, :, :-2]  # rows that are part of wider ones, as in a step
    expected = reference.paged_attention(
        query, kv_cache, reference.ReferencePlanner(geometry, device).plan(layout), variant
    )
    planner = GpuAttentionPlanner(geometry, frozenset([variant.window]), device)
    plan = planner.plan(layout)
    plan.output.fill_(torch.nan)
    actual = paged_attention(query, kv_cache, plan, variant)
    tolerance = TOLERANCES[case.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sequences", [DECODES, PREFILLS], ids=["decode", "prefill"])
def test_dtypes(sequences: list[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> None:
    check(Case(sequences, dtype=dtype), PLAIN, device)


@pytest.mark.parametrize("sequences", [DECODES, PREFILLS], ids=["decode", "prefill"])
@pytest.mark.parametrize(
    ("group_size", "head_dim", "block_size", "num_kv_heads"),
    [(1, 64, 1, 3), (4, 80, 32, 1), (8, 32, 256, 1), (5, 24, 8, 2)],
)
def test_shapes(
    sequences: list[tuple[int, int]],
    group_size: int,
    head_dim: int,
    block_size: int,
    num_kv_heads: int,
    device: torch.device,
) -> None:
    if block_size == 1:
        sequences = [(min(length, 20), min(count, 20)) for length, count in sequences]
    check(Case(sequences, group_size, head_dim, block_size, num_kv_heads), PLAIN, device)


@pytest.mark.parametrize("sequences", [DECODES, PREFILLS], ids=["decode", "prefill"])
@pytest.mark.parametrize("window", [1, 7, 40, 300])
def test_window(sequences: list[tuple[int, int]], window: int, device: torch.device) -> None:
    check(Case(sequences), AttentionVariant(window), device)


@pytest.mark.parametrize("sequences", [DECODES, PREFILLS], ids=["decode", "prefill"])
def test_softcap_and_sinks(sequences: list[tuple[int, int]], device: torch.device) -> None:
    # One sink far above every score, one far below, and common ones.
    sinks = torch.tensor([[40.0, -40.0, 0.5], [0.0, 1.0, 2.0]], device=device)
    check(Case(sequences), AttentionVariant(softcap=2.0), device)
    check(Case(sequences), AttentionVariant(sinks=sinks), device)
    check(Case(sequences), AttentionVariant(window=30, softcap=5.0, sinks=sinks), device)


@pytest.mark.parametrize("sequences", [DECODES, PREFILLS], ids=["decode", "prefill"])
def test_float8_cache(sequences: list[tuple[int, int]], device: torch.device) -> None:
    scales = (torch.tensor(0.7, device=device), torch.tensor(1.3, device=device))
    check(Case(sequences, dtype=torch.float16), AttentionVariant(scales=scales), device)


def test_decodes_beside_prefills(device: torch.device) -> None:
    check(Case([(300, 1), (9, 1), (40, 2), (33, 33)]), PLAIN, device)


def test_sequences_share_programs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_planner, "_PROGRAMS_PER_PROCESSOR", 1)
    check(Case([(length, 1) for length in range(1, 30)], block_size=32), PLAIN, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("group_size", "head_dim"), [(3, 16), (1, 80), (4, 64)])
def test_rotate_and_store(
    dtype: torch.dtype, has_norm: bool, group_size: int, head_dim: int, device: torch.device
) -> None:
    check_store(Case(STORED, group_size, head_dim, dtype=dtype), has_norm, PLAIN, device)


@pytest.mark.parametrize("has_norm", [False, True])
def test_rotate_and_store_in_float8(has_norm: bool, device: torch.device) -> None:
    # The second scale is so small that values leave the range of float8.
    scales = (torch.tensor(0.5, device=device), torch.tensor(0.001, device=device))
    check_store(Case(STORED), has_norm, AttentionVariant(scales=scales), device)


def check_store(
    case: Case, has_norm: bool, variant: AttentionVariant, device: torch.device
) -> None:
    geometry, layout = case.geometry, layout_of(case)
    generator = torch.Generator().manual_seed(2)
    shape = (layout.num_tokens, geometry.num_kv_heads, geometry.group_size + 2, geometry.head_dim)
    heads = torch.randn(shape, generator=generator).to(device, case.dtype)
    angles = 6 * torch.rand(layout.num_tokens, geometry.head_dim // 2, generator=generator)
    rotation = torch.polar(torch.ones_like(angles), angles).to(device)
    norm = None
    if has_norm:
        gain = torch.randn(geometry.group_size + 1, geometry.head_dim, generator=generator)
        empty = torch.empty(0, device=device)
        norm = NormWeight(gain.to(device, case.dtype), 1e-5, empty, empty)
    cache_dtype = torch.float8_e4m3fn if variant.scales else case.dtype
    expected_cache = torch.zeros(geometry.cache_shape, device=device).to(cache_dtype)
    kv_cache = expected_cache.clone()
    expected = heads.to(torch.float32, copy=True)
    if norm is not None:
        wide = replace(norm, weight=norm.weight.float())
        expected[:, :, :-1] = reference.rms_norm(expected[:, :, :-1], wide)
    reference.rotary_(expected[:, :, :-1], rotation[:, None, None])
    plan = reference.ReferencePlanner(geometry, device).plan(layout)
    # A token without a slot, as padding has it, is written nowhere.
    kept = torch.arange(layout.num_tokens, device=device) != 1
    stored = replace(plan, slot_mapping=plan.slot_mapping[kept])
    reference.store_kv(expected[kept][:, :, -2:], expected_cache, stored, variant)
    slots = torch.where(kept, plan.slot_mapping, -1).to(torch.int32)
    rotate_and_store(heads, norm, rotation, kv_cache, slots, variant.scales)
    tolerance = TOLERANCES[case.dtype]
    queries = expected[:, :, :-2].to(case.dtype)
    torch.testing.assert_close(heads[:, :, :-2], queries, rtol=tolerance, atol=tolerance)
    if variant.scales is not None:
        tolerance = 0.13  # a unit: the kernel's sums may round to the other side
    torch.testing.assert_close(
        kv_cache.float(), expected_cache.float(), rtol=tolerance, atol=tolerance
    )
