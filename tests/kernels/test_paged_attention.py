"""Paged attention, fast and reference, against a loop over single queries in float64."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import cpu_attention_plan, ops
from kernels.cpu_attention_plan import CpuAttentionPlanner
from kernels.layout import AttentionGeometry, StepLayout
from kernels.ops import AttentionPlanner
from kernels.reference import ReferencePlanner

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}
WINDOWS = [None, 1, 7, 16, 300]
IMPLEMENTATIONS = ["cpu", "reference"]


@dataclass
class Step:
    """Sequences with (KV length, queries), their true KV, and a cache that is NaN elsewhere."""

    layout: StepLayout
    query: Tensor
    new_key_value: Tensor
    kv_cache: Tensor
    keys_values: list[Tensor]
    """For each sequence [2, seq_len, num_kv_heads, head_dim]."""


def geometry_of(
    block_size: int = 4,
    num_kv_heads: int = 2,
    group_size: int = 3,
    head_dim: int = 12,
    dtype: torch.dtype = torch.float32,
) -> AttentionGeometry:
    return AttentionGeometry(600, block_size, num_kv_heads, group_size, head_dim, dtype)


def planner_of(implementation: str, geometry: AttentionGeometry) -> AttentionPlanner:
    if implementation == "cpu":
        return CpuAttentionPlanner(geometry, frozenset(WINDOWS))
    return ReferencePlanner(geometry, torch.device("cpu"))


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
    keys_values, news, slots, first = [], [], [], 0
    for i, (length, count) in enumerate(sequences):
        tables[i, : num_blocks[i]] = block_ids[first : first + num_blocks[i]]
        first += num_blocks[i]
        key_value = torch.randn(2, length, h, d, generator=generator).to(geometry.dtype)
        for position in range(length):
            slot = tables[i, position // size] * size + position % size
            if position < length - count:
                kv_cache[:, slot // size, :, slot % size] = key_value[:, position]
            else:
                slots.append(slot)
                news.append(key_value[:, position].transpose(0, 1))
        keys_values.append(key_value)
    query_start_loc = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    layout = StepLayout(query_start_loc, seq_lens, tables, np.array(slots, dtype=np.int32))
    query = torch.randn(len(slots), h, g, d, generator=generator).to(geometry.dtype)
    return Step(layout, query, torch.stack(news), kv_cache, keys_values)


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
                for query in step.query[row, h].double():
                    scores = key[low : position + 1, h] @ query / geometry.head_dim**0.5
                    heads.append(scores.softmax(0) @ value[low : position + 1, h])
            rows.append(torch.cat(heads))
    return torch.stack(rows)


def run(step: Step, planner: AttentionPlanner, window: int | None) -> Tensor:
    plan = planner.plan(step.layout)
    ops.store_kv(step.new_key_value, step.kv_cache, plan)
    return ops.paged_attention(step.query, step.kv_cache, plan, window).clone()


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
        geometry_of(block_size=16),
        geometry_of(group_size=1),
        geometry_of(num_kv_heads=1, group_size=5, head_dim=2),
        geometry_of(dtype=torch.bfloat16),
        geometry_of(dtype=torch.float16),
    ],
    ids=["block 1", "block 16", "one query head", "odd heads", "bfloat16", "float16"],
)
def test_attention_equals_the_loop_for_every_geometry(
    implementation: str, window: int | None, geometry: AttentionGeometry
) -> None:
    check(geometry, planner_of(implementation, geometry), SEQUENCES["all kinds"], window)


@pytest.mark.parametrize("window", [None, 16, 300])
def test_long_chunks_in_several_tiles_equal_the_loop(window: int | None) -> None:
    geometry = geometry_of(num_kv_heads=1, group_size=2, head_dim=4)

    check(geometry, planner_of("cpu", geometry), [(700, 600), (530, 530)], window)


@pytest.mark.parametrize("group_bytes", [1, 4096])
def test_decodes_split_into_groups_equal_the_loop(
    group_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention_plan, "_GROUP_BYTES", group_bytes)
    monkeypatch.setattr(cpu_attention_plan, "_PADDING_BYTES", group_bytes)
    geometry = geometry_of()
    sequences = [(length, 1) for length in (90, 80, 41, 40, 39, 17, 16, 3, 2, 1)]
    planner = planner_of("cpu", geometry)

    check(geometry, planner, sequences, None)
    assert len(planner.plan(make_step(geometry, sequences).layout).windows[None].decode_groups) > 1  # type: ignore[union-attr]


def test_buffers_of_a_larger_step_do_not_leak_into_a_smaller_one() -> None:
    geometry = geometry_of()
    planner = planner_of("cpu", geometry)
    for seed, name in enumerate(
        ["one decode", "all kinds", "decodes of all lengths", "one decode"]
    ):
        for window in (None, 7):
            check(geometry, planner, SEQUENCES[name], window, seed)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_of_one_sequence_stays_its_own(implementation: str) -> None:
    geometry = geometry_of()
    step = make_step(geometry, [(20, 1), (20, 1), (9, 9)])
    step.new_key_value[0] = torch.nan

    output = run(step, planner_of(implementation, geometry), None)

    assert output[0].isnan().all()
    assert not output[1:].isnan().any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_store_writes_the_slots_of_the_step_and_no_other(implementation: str) -> None:
    geometry = geometry_of()
    step = make_step(geometry, SEQUENCES["all kinds"])
    before = step.kv_cache.clone()
    plan = planner_of(implementation, geometry).plan(step.layout)

    ops.store_kv(step.new_key_value, step.kv_cache, plan)

    for row, slot in enumerate(step.layout.slot_mapping.tolist()):
        block_id, offset = divmod(slot, geometry.block_size)
        assert torch.equal(
            step.kv_cache[:, block_id, :, offset], step.new_key_value[row].transpose(0, 1)
        )
        before[:, block_id, :, offset] = step.kv_cache[:, block_id, :, offset]
    assert torch.equal(step.kv_cache.isnan(), before.isnan())
    assert torch.equal(step.kv_cache.nan_to_num(), before.nan_to_num())
