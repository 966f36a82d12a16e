"""A layer's halves in one call against the same as a chain of operations, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import native_library, ops
from kernels.layout import AttentionGeometry, StepLayout
from kernels.native_attention import NativePlanner
from kernels.weights import (
    FeedForwardWeights,
    LinearWeight,
    NormWeight,
    Packing,
    SelfAttentionWeights,
)

pytestmark = pytest.mark.skipif(
    not native_library.can_run(48, torch.float32), reason="no compiled kernels here"
)
HIDDEN, FFN = 48, 75
GEOMETRY = AttentionGeometry(
    num_blocks=40, block_size=16, num_kv_heads=2, group_size=3, head_dim=16, dtype=torch.float32
)
COUNTS = (1, 1, 5, 30)  # tokens of each sequence


class Random:
    """Tensors that differ, the same in every run."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def norm(self, *shape: int) -> NormWeight:
        return ops.norm_weight(self.tensor(*shape), 1e-5)

    def self_attention(
        self, stored: torch.dtype, *, has_bias: bool, has_qk_norm: bool, window: int | None
    ) -> SelfAttentionWeights:
        h, g, d = GEOMETRY.num_kv_heads, GEOMETRY.group_size, GEOMETRY.head_dim
        heads, query = h * (g + 2) * d, h * g * d

        def weight(num_outputs: int, num_inputs: int) -> LinearWeight:
            matrix = self.tensor(num_outputs, num_inputs).to(stored)
            bias = self.tensor(num_outputs) if has_bias else None
            return ops.linear_weight(matrix, bias, torch.float32, Packing.PANELS)

        return ops.self_attention_weights(
            self.norm(HIDDEN),
            weight(heads, HIDDEN),
            self.norm(g + 1, d) if has_qk_norm else None,
            weight(HIDDEN, query),
            window,
        )

    def feed_forward(self, stored: torch.dtype, *, has_bias: bool) -> FeedForwardWeights:
        gate_up = ops.gated_weight(
            self.tensor(2 * FFN, HIDDEN).to(stored),
            self.tensor(2 * FFN) if has_bias else None,
            torch.float32,
            Packing.PANELS,
        )
        down = self.tensor(HIDDEN, FFN).to(stored)
        return ops.feed_forward_weights(
            self.norm(HIDDEN), gate_up, ops.linear_weight(down, None, torch.float32, Packing.PANELS)
        )


def layout() -> StepLayout:
    rng = np.random.default_rng(0)
    lens = np.array([70, 33, 20, 30], dtype=np.int32)
    tables = rng.permutation(40)[: 4 * 5].reshape(4, 5).astype(np.int32)
    positions = [np.arange(n - count, n) for n, count in zip(lens, COUNTS, strict=True)]
    slots = [tables[i, p // 16] * 16 + p % 16 for i, p in enumerate(positions)]
    starts = np.concatenate(([0], np.cumsum(COUNTS))).astype(np.int32)
    slot_mapping, rows = (
        np.concatenate(slots).astype(np.int32),
        np.arange(len(lens), dtype=np.int32),
    )
    return StepLayout(starts, lens, tables, slot_mapping, rows)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("rows", [None, [0, 36, 3], []])
@pytest.mark.parametrize(
    ("has_bias", "has_qk_norm", "window"), [(False, False, None), (True, True, 24)]
)
def test_self_attention_in_one_call_equals_its_operations(
    stored: torch.dtype,
    is_first: bool,
    rows: list[int] | None,
    has_bias: bool,
    has_qk_norm: bool,
    window: int | None,
) -> None:
    random = Random()
    weights = random.self_attention(
        stored, has_bias=has_bias, has_qk_norm=has_qk_norm, window=window
    )
    assert weights.native is not None
    num_tokens = sum(COUNTS)
    x = None if is_first else random.tensor(num_tokens, HIDDEN)
    residual, cache = random.tensor(num_tokens, HIDDEN), random.tensor(*GEOMETRY.cache_shape)
    rotation = torch.view_as_complex(random.tensor(num_tokens, GEOMETRY.head_dim // 2, 2))
    wanted = None if rows is None else torch.tensor(rows, dtype=torch.int64)
    plan = NativePlanner(GEOMETRY).plan(layout())
    residual_after, cache_after = residual.clone(), cache.clone()

    expected = ops.self_attention(
        x, residual_after, replace(weights, native=None), rotation, cache_after, plan, wanted
    )
    actual = ops.self_attention(x, residual, weights, rotation, cache, plan, wanted)

    assert torch.equal(actual, expected)
    assert torch.equal(residual, residual_after)
    assert torch.equal(cache, cache_after)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 9, 300])
def test_feed_forward_in_one_call_equals_its_operations(
    stored: torch.dtype, has_bias: bool, num_tokens: int
) -> None:
    random = Random()
    weights = random.feed_forward(stored, has_bias=has_bias)
    assert weights.native is not None
    x, residual = random.tensor(num_tokens, HIDDEN), random.tensor(num_tokens, HIDDEN)
    residual_after = residual.clone()

    expected = ops.feed_forward(x, residual_after, replace(weights, native=None))
    actual = ops.feed_forward(x, residual, weights)

    assert torch.equal(actual, expected)
    assert torch.equal(residual, residual_after)


def test_a_row_of_either_half_does_not_depend_on_the_rows_beside_it() -> None:
    random = Random()
    weights = random.feed_forward(torch.bfloat16, has_bias=False)
    x, residual = random.tensor(200, HIDDEN), random.tensor(200, HIDDEN)
    together = ops.feed_forward(x, residual.clone(), weights)

    for size in (1, 2, 5, 7, 64, 129):
        assert torch.equal(
            ops.feed_forward(x[:size], residual[:size].clone(), weights), together[:size]
        )
