"""Norms, activation and rotation against their formulas in float64."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from kernels import cpu_elementwise, native_elementwise, native_library, ops, reference

IMPLEMENTATIONS = [reference, cpu_elementwise]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
DTYPES = list(TOLERANCES)
NATIVE = pytest.mark.skipif(
    not native_library.can_run(48, torch.float32), reason="no compiled kernels here"
)
# With widths that each can take: the compiled kernels want whole vectors.
CASES = [
    pytest.param(implementation, dtype, width)
    for implementation in IMPLEMENTATIONS
    for dtype in DTYPES
    for width in (8, 41, 123, 576)
] + [
    pytest.param(native_elementwise, torch.float32, width, marks=NATIVE) for width in (16, 48, 576)
]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[actual.dtype]
    torch.testing.assert_close(
        actual.double(), expected.double(), atol=tolerance, rtol=tolerance, check_dtype=False
    )


def exact_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize(("implementation", "dtype", "width"), CASES)
@pytest.mark.parametrize("num_rows", [1, 5, 33])
def test_rms_norm_follows_its_formula(
    implementation: ModuleType, dtype: torch.dtype, width: int, num_rows: int
) -> None:
    x, weight = random(num_rows, width, dtype=dtype), random(width, dtype=dtype)
    norm = ops.norm_weight(weight, 1e-5)
    before = x.clone()

    assert_near(implementation.rms_norm(x, norm), exact_rms_norm(x, weight, 1e-5))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "implementation", [*IMPLEMENTATIONS, pytest.param(native_elementwise, marks=NATIVE)]
)
def test_rms_norm_of_tiny_and_zero_rows_is_bounded_by_eps(implementation: ModuleType) -> None:
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-6), torch.full((64,), 1e-20)])
    norm = ops.norm_weight(torch.ones(64), 1e-5)

    normed = implementation.rms_norm(x, norm)

    assert_near(normed, exact_rms_norm(x, norm.weight, 1e-5))
    assert torch.equal(normed[0], torch.zeros(64))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_in_place_writes_through_a_strided_view(
    implementation: ModuleType, dtype: torch.dtype
) -> None:
    heads = random(5, 2, 4, 12, dtype=dtype)
    weight = random(3, 12, dtype=dtype)
    before = heads.clone()

    implementation.rms_norm_(heads[:, :, :3], ops.norm_weight(weight, 1e-6))

    assert_near(heads[:, :, :3], exact_rms_norm(before[:, :, :3], weight, 1e-6))
    assert torch.equal(heads[:, :, 3], before[:, :, 3])


@pytest.mark.parametrize(("implementation", "dtype", "width"), CASES)
def test_add_rms_norm_adds_in_place_and_norms_the_sum(
    implementation: ModuleType, dtype: torch.dtype, width: int
) -> None:
    x, residual = random(7, width, dtype=dtype), random(7, width, dtype=dtype) * 2
    weight = random(width, dtype=dtype)
    total = x + residual

    normed = implementation.add_rms_norm(x, residual, ops.norm_weight(weight, 1e-5))

    assert torch.equal(residual, total)
    assert_near(normed, exact_rms_norm(total, weight, 1e-5))


@pytest.mark.parametrize(("implementation", "dtype", "width"), CASES)
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_silu_and_mul_follows_its_formula(
    implementation: ModuleType, dtype: torch.dtype, width: int, num_tokens: int
) -> None:
    gate_up = random(num_tokens, 2 * width, dtype=dtype) * 3
    gate, up = gate_up.double().chunk(2, dim=-1)

    assert_near(implementation.silu_and_mul(gate_up), gate / (1 + torch.exp(-gate)) * up)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_turns_each_pair_by_its_angle_and_nothing_else(
    implementation: ModuleType, dtype: torch.dtype
) -> None:
    heads = random(5, 3, 4, 10, dtype=dtype)
    before = heads.clone()
    angles = random(5, 5).double()

    rotation = torch.polar(torch.full_like(angles, 1.5), angles).to(torch.complex64)
    implementation.rotary_(heads[:, :, :3], rotation[:, None, None])

    for token in range(5):
        for pair in range(5):
            even, odd = before[token, :, :3, 2 * pair : 2 * pair + 2].double().unbind(-1)
            cos, sin = 1.5 * angles[token, pair].cos(), 1.5 * angles[token, pair].sin()
            turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
            assert_near(heads[token, :, :3, 2 * pair : 2 * pair + 2], turned)
    assert torch.equal(heads[:, :, 3], before[:, :, 3])


@pytest.mark.parametrize(
    "implementation", [*IMPLEMENTATIONS, pytest.param(native_elementwise, marks=NATIVE)]
)
def test_silu_of_huge_gates_is_the_gate_or_nothing(implementation: ModuleType) -> None:
    gates = torch.tensor([-1e30, -1e4, -90.0, -1e-30, 0.0, 90.0, 1e4, 1e30]).repeat(2)
    gate_up = torch.cat((gates, torch.ones(16)))[None]

    activated = implementation.silu_and_mul(gate_up)

    expected = torch.where(gates > 1, gates, 0.0)[None]
    torch.testing.assert_close(activated, expected, atol=1e-7, rtol=1e-6)
