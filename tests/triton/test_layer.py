"""The elementwise kernels of a layer against plain torch."""

import pytest
import torch
from torch import Tensor

from kernels import ops, reference
from kernels.gpu import gated_activation, rms_norm
from kernels.gpu.gated_activation import Activation

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 48, 576, 1000])
def test_rms_norm(dtype: torch.dtype, dim: int, device: torch.device) -> None:
    # Rows that are part of wider ones: their stride is not their length.
    x = random(3, dim + 5, dtype=dtype).to(device)[:, :dim]
    norm = ops.norm_weight(random(dim, dtype=dtype, seed=1).to(device), 1e-5)
    assert_close(rms_norm.rms_norm(x, norm), reference.rms_norm(x, norm))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [48, 1000])
def test_add_rms_norm_updates_the_residual(
    dtype: torch.dtype, dim: int, device: torch.device
) -> None:
    x = random(3, dim, dtype=dtype).to(device)
    residual = random(3, dim, dtype=dtype, seed=1).to(device)
    norm = ops.norm_weight(random(dim, dtype=dtype, seed=2).to(device), 1e-6)
    expected_residual = residual.clone()
    expected = reference.add_rms_norm(x, expected_residual, norm)
    assert_close(rms_norm.add_rms_norm(x, residual, norm), expected)
    assert torch.equal(residual, expected_residual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 100, 1536])
def test_silu_and_mul(dtype: torch.dtype, width: int, device: torch.device) -> None:
    gate_up = (4 * random(3, 2 * width, dtype=dtype)).to(device)
    expected = reference.silu_and_mul(gate_up.float()).to(dtype)
    assert_close(gated_activation.silu_and_mul(gate_up), expected)


@pytest.mark.parametrize("activation", [Activation.GELU, Activation.GELU_TANH])
def test_gelu(activation: Activation, device: torch.device) -> None:
    gate_up = (4 * random(2, 2 * 77, dtype=torch.float32)).to(device)
    gate, up = gate_up.chunk(2, dim=-1)
    way = "tanh" if activation is Activation.GELU_TANH else "none"
    expected = torch.nn.functional.gelu(gate, approximate=way) * up
    assert_close(gated_activation.gated_activation(gate_up, activation), expected)


def test_large_gates_stay_finite(device: torch.device) -> None:
    gate_up = torch.tensor([[-1e4, -200.0, 200.0, 1e4, 1.0, 1.0, 1.0, 1.0]], device=device)
    for activation in Activation:
        activated = gated_activation.gated_activation(gate_up, activation)
        assert activated[0].tolist() == pytest.approx([0.0, 0.0, 200.0, 1e4], abs=1e-30)


def test_no_rows(device: torch.device) -> None:
    norm = ops.norm_weight(torch.ones(8, device=device), 1e-5)
    empty = torch.empty(0, 8, device=device)
    assert rms_norm.rms_norm(empty, norm).shape == (0, 8)
    assert gated_activation.silu_and_mul(empty).shape == (0, 4)
