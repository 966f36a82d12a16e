"""Paged attention, fast and reference, against a loop over single queries in float64."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import cpu_attention_plan, native_library, ops
from kernels.cpu_attention_plan import CpuAttentionPlanner
from kernels.layout import AttentionGeometry, IntArray, StepLayout
from kernels.native_attention import NativePlan, NativePlanner
from kernels.ops import AttentionPlan, AttentionPlanner
from kernels.reference import ReferencePlanner

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}
WINDOWS = [None, 1, 7, 16, 300]
IMPLEMENTATIONS = ["native", "torch", "reference"]


@dataclass
class Step:
    """Sequences with (KV length, queries), their true KV, and a cache that is NaN elsewhere."""

    layout: StepLayout
    heads: Tensor
    """Queries, and the new tokens' keys and values: [tokens, h, g + 2, head_dim]"""
    before: StepLayout
    """The step that stored what came before."""
    heads_before: Tensor
    kv_cache: Tensor
    keys_values: list[Tensor]
    """For each sequence [2, seq_len, num_kv_heads, head_dim]."""


def geometry_of(
    block_size: int = 4,
    num_kv_heads: int = 2,
    group_size: int = 3,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
) -> AttentionGeometry:
    return AttentionGeometry(600, block_size, num_kv_heads, group_size, head_dim, dtype)


def planner_of(implementation: str, geometry: AttentionGeometry) -> AttentionPlanner:
    if implementation == "reference":
        return ReferencePlanner(geometry, torch.device("cpu"))
    if implementation == "torch":
        return CpuAttentionPlanner(geometry, frozenset(WINDOWS))
    if not native_library.can_run(geometry.head_dim, geometry.dtype):
        pytest.skip("no compiled kernel for this geometry here")
    return NativePlanner(geometry)


def make_step(
    geometry: AttentionGeometry, sequences: Sequence[tuple[int, int]], seed: int = 0
) -> Step:
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    h, g, d = geometry.num_kv_heads, geometry.group_size, geometry.head_dim
    size = geometry.block_size
    seq_lens = np.array([length for length, _ in sequences], dtype=np.int32)
    counts = np.array([count for _, count in sequences], dtype=np.int32)
    num_blocks = -(-seq_lens // size)
    # Entries past a sequence's end name a block of nobody, full of NaN.
    block_ids = rng.permutation(geometry.num_blocks).astype(np.int32)
    tables = np.full((len(sequences), num_blocks.max() + 1), block_ids[-1], dtype=np.int32)
    kv_cache = torch.full(geometry.cache_shape, torch.nan, dtype=geometry.dtype)
    keys_values, first = [], 0
    for i, length in enumerate(seq_lens.tolist()):
        tables[i, : num_blocks[i]] = block_ids[first : first + num_blocks[i]]
        first += num_blocks[i]
        key_value = torch.randn(2, length, h, d, generator=generator).to(geometry.dtype)
        keys_values.append(key_value)

    def layout_of(first: IntArray, last: IntArray) -> tuple[StepLayout, Tensor]:
        """Layout and heads of the tokens first..last of each sequence."""
        positions = [np.arange(*bounds) for bounds in zip(first, last, strict=True)]
        slots = [tables[i, p // size] * size + p % size for i, p in enumerate(positions)]
        news = torch.cat(
            [kv[:, p].permute(1, 2, 0, 3) for kv, p in zip(keys_values, positions, strict=True)]
        )
        query = torch.randn(len(news), h, g, d, generator=generator).to(geometry.dtype)
        starts = np.concatenate(([0], np.cumsum(last - first))).astype(np.int32)
        slot_mapping = np.concatenate(slots).astype(np.int32)
        rows = np.arange(len(last), dtype=np.int32)
        layout = StepLayout(starts, last, tables, slot_mapping, rows)
        return layout, torch.cat((query, news), dim=2)

    before, heads_before = layout_of(np.zeros_like(seq_lens), seq_lens - counts)
    layout, heads = layout_of(seq_lens - counts, seq_lens)
    return Step(layout, heads, before, heads_before, kv_cache, keys_values)


def exact_attention(step: Step, geometry: AttentionGeometry, window: int | None) -> Tensor:
    rows = []
    bounds = step.layout.query_start_loc.tolist()
    for i, key_value in enumerate(step.keys_values):
        key, value = key_value.double()
        for row in range(bounds[i], bounds[i + 1]):
            position = len(key) - (bounds[i + 1] - row)
            low = 0 if window is None else max(position - window + 1, 0)
            heads = []
            for h in range(geometry.num_kv_heads):
                for query in step.heads[row, h, :-2].double():
                    scores = key[low : position + 1, h] @ query / geometry.head_dim**0.5
                    heads.append(scores.softmax(0) @ value[low : position + 1, h])
            rows.append(torch.cat(heads))
    return torch.stack(rows)


def store(heads: Tensor, kv_cache: Tensor, plan: AttentionPlan) -> None:
    unturned = torch.ones(len(heads), heads.shape[-1] // 2, dtype=torch.complex64)
    ops.rotate_and_store(heads, None, unturned, kv_cache, plan)


def run(step: Step, planner: AttentionPlanner, window: int | None) -> Tensor:
    if len(step.heads_before):
        store(step.heads_before, step.kv_cache, planner.plan(step.before))
    plan = planner.plan(step.layout)
    store(step.heads, step.kv_cache, plan)
    return ops.paged_attention(step.heads[:, :, :-2], step.kv_cache, plan, window).clone()


def stored(step: Step, plan: AttentionPlan, slot: int) -> Tensor:
    """The key and value in a slot: [h, 2, head_dim], and writes NaN over them."""
    block_id, offset = divmod(slot, step.kv_cache.shape[-2])
    keys, values = step.kv_cache
    if isinstance(plan, NativePlan):  # transposed within the block
        keys = keys.view(*keys.shape[:2], keys.shape[3], keys.shape[2]).transpose(2, 3)
    key_value = torch.stack((keys[block_id, :, offset], values[block_id, :, offset]), dim=1)
    keys[block_id, :, offset] = values[block_id, :, offset] = torch.nan
    return key_value


def check(
    geometry: AttentionGeometry,
    planner: AttentionPlanner,
    sequences: Sequence[tuple[int, int]],
    window: int | None,
    seed: int = 0,
) -> None:
    step = make_step(geometry, sequences, seed)
    output = run(step, planner, window)
    expected = exact_attention(step, geometry, window)
    tolerance = TOLERANCES[geometry.dtype]
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)


SEQUENCES = {
    "one decode": [(1, 1)],
    "decodes of all lengths": [(41, 1), (17, 1), (16, 1), (15, 1), (4, 1), (3, 1), (1, 1)],
    "whole prompts": [(1, 1), (19, 19), (4, 4), (5, 5)],
    "chunks behind a prefix": [(23, 5), (8, 4), (40, 39), (33, 2)],
    "all kinds": [(30, 1), (2, 1), (21, 21), (37, 9), (6, 1), (13, 8)],
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sequences", SEQUENCES.values(), ids=SEQUENCES.keys())
def test_attention_equals_the_loop_and_reads_no_foreign_slot(
    implementation: str, window: int | None, sequences: list[tuple[int, int]]
) -> None:
    geometry = geometry_of()

    check(geometry, planner_of(implementation, geometry), sequences, window)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(
    "geometry",
    [
        geometry_of(block_size=1),
        geometry_of(block_size=12),
        geometry_of(block_size=16),
        geometry_of(block_size=64),
        geometry_of(group_size=1),
        geometry_of(head_dim=80),
        geometry_of(num_kv_heads=1, group_size=5, head_dim=2),
        geometry_of(dtype=torch.bfloat16),
        geometry_of(dtype=torch.float16),
    ],
    ids=["block 1", "12", "16", "64", "one query head", "head 80", "odd heads", "bf16", "fp16"],
)
def test_attention_equals_the_loop_for_every_geometry(
    implementation: str, window: int | None, geometry: AttentionGeometry
) -> None:
    check(geometry, planner_of(implementation, geometry), SEQUENCES["all kinds"], window)


@pytest.mark.parametrize("window", [None, 16, 300])
def test_long_chunks_in_several_tiles_equal_the_loop(window: int | None) -> None:
    geometry = geometry_of(num_kv_heads=1, group_size=2, head_dim=4)

    check(geometry, planner_of("torch", geometry), [(700, 600), (530, 530)], window)


@pytest.mark.parametrize("group_bytes", [1, 4096])
def test_decodes_split_into_groups_equal_the_loop(
    group_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention_plan, "_GROUP_BYTES", group_bytes)
    monkeypatch.setattr(cpu_attention_plan, "_PADDING_BYTES", group_bytes)
    geometry = geometry_of()
    sequences = [(length, 1) for length in (90, 80, 41, 40, 39, 17, 16, 3, 2, 1)]
    planner = planner_of("torch", geometry)

    check(geometry, planner, sequences, None)
    assert len(planner.plan(make_step(geometry, sequences).layout).windows[None].decode_groups) > 1  # type: ignore[union-attr]


@pytest.mark.parametrize("implementation", ["native", "torch"])
def test_buffers_of_a_larger_step_do_not_leak_into_a_smaller_one(implementation: str) -> None:
    geometry = geometry_of()
    planner = planner_of(implementation, geometry)
    for seed, name in enumerate(
        ["one decode", "all kinds", "decodes of all lengths", "one decode"]
    ):
        for window in (None, 7):
            check(geometry, planner, SEQUENCES[name], window, seed)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_of_one_sequence_stays_its_own(implementation: str) -> None:
    geometry = geometry_of()
    step = make_step(geometry, [(20, 1), (20, 1), (9, 9)])
    step.heads[0, :, -2:] = torch.nan

    output = run(step, planner_of(implementation, geometry), None)

    assert output[0].isnan().all()
    assert not output[1:].isnan().any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_store_writes_the_slots_of_the_step_and_no_other(implementation: str) -> None:
    geometry = geometry_of()
    step = make_step(geometry, SEQUENCES["all kinds"])
    plan = planner_of(implementation, geometry).plan(step.layout)

    store(step.heads, step.kv_cache, plan)

    for row, slot in enumerate(step.layout.slot_mapping.tolist()):
        assert torch.equal(stored(step, plan, slot), step.heads[row, :, -2:])
    assert step.kv_cache.isnan().all()  # where it was not NaN, it was ours


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("has_norm", [False, True])
def test_queries_and_keys_are_normed_and_turned_before_they_are_stored(
    implementation: str, dtype: torch.dtype, has_norm: bool
) -> None:
    geometry = geometry_of(dtype=dtype)
    step = make_step(geometry, SEQUENCES["all kinds"])
    generator = torch.Generator().manual_seed(1)
    gain = torch.randn(4, 16, generator=generator).to(dtype)
    angles = torch.randn(len(step.heads), 8, generator=generator)
    rotation = torch.polar(torch.full_like(angles, 1.5), angles)
    expected = step.heads.double()
    if has_norm:
        rms = (expected[:, :, :-1].square().mean(-1, keepdim=True) + 1e-5).sqrt()
        expected[:, :, :-1] *= gain.double() / rms
    pairs = torch.view_as_complex(expected[:, :, :-1].reshape(*expected.shape[:2], -1, 8, 2))
    expected[:, :, :-1] = torch.view_as_real(pairs * rotation[:, None, None]).flatten(-2)
    plan = planner_of(implementation, geometry).plan(step.layout)

    norm = ops.norm_weight(gain, 1e-5) if has_norm else None
    ops.rotate_and_store(step.heads, norm, rotation, step.kv_cache, plan)

    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(step.heads.double(), expected, atol=tolerance, rtol=tolerance)
    for row, slot in enumerate(step.layout.slot_mapping.tolist()):
        assert torch.equal(stored(step, plan, slot), step.heads[row, :, -2:])


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("block_size", [4, 16])
def test_a_query_does_not_depend_on_batch_mates_or_chunks(
    window: int | None, block_size: int
) -> None:
    geometry = geometry_of(block_size=block_size)
    planner = planner_of("native", geometry)
    step = make_step(geometry, [(600, 600), (141, 141)])
    together = run(step, planner, window)
    layout = step.layout
    for i, (first, chunks) in enumerate(
        [(0, (129, 1, 1, 5, 200, 1, 1, 40, 130, 1, 91)), (600, (129, 1, 1, 5, 5))]
    ):
        start = 0
        for count in chunks:
            rows = slice(first + start, first + start + count)
            chunk = StepLayout(
                np.array([0, count], dtype=np.int32),
                np.array([start + count], dtype=np.int32),
                layout.block_tables[i : i + 1],
                layout.slot_mapping[rows],
                np.zeros(1, dtype=np.int32),
            )
            query = step.heads[rows, :, :-2]
            alone = ops.paged_attention(query, step.kv_cache, planner.plan(chunk), window)
            assert torch.equal(alone, together[rows])
            start += count
