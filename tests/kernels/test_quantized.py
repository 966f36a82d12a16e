"""Products of int8 weights with inputs that are quantized group by group."""

import pytest
import torch
from torch import Tensor

from kernels import ops
from kernels.weights import LinearWeight, Packing

pytestmark = pytest.mark.skipif(
    not ops.can_quantize(torch.float32, torch.device("cpu")), reason="no compiled kernels here"
)
GROUP = 32  # of kernels/native/quantized.cpp
SHAPES = [(37, 53), (16, 8), (75, 130), (200, 577)]  # outputs, inputs


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole_multiples(num_rows: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Integers [num_rows, width], 127 in each group, and a power of two for each row."""
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-127, 128, (num_rows, width), generator=generator)
    integers[:, ::GROUP] = torch.tensor([127, -127]).repeat(num_rows)[:num_rows, None]
    return integers, 2.0 ** torch.randint(-9, 3, (num_rows, 1), generator=generator)


def quantized(weight: Tensor, bias: Tensor | None = None) -> LinearWeight:
    return ops.linear_weight(weight, bias, torch.float32, Packing.INT8_PANELS)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 64, 129])
def test_what_int8_holds_exactly_is_multiplied_exactly(
    shape: tuple[int, int], num_tokens: int
) -> None:
    weight, weight_scales = whole_multiples(*shape, seed=1)
    x, x_scales = whole_multiples(num_tokens, shape[1], seed=2)

    product = ops.linear(x * x_scales, quantized(weight * weight_scales))

    expected = (x @ weight.T).double() * x_scales * weight_scales.T
    error = (product.double() - expected).abs() / (x_scales * weight_scales.T)
    assert error.max() <= 1e-6 * 127 * 127 * shape[1]  # rounding of the groups' sum


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_near_the_exact_one(
    shape: tuple[int, int], stored: torch.dtype, has_bias: bool
) -> None:
    weight, x = random(*shape).to(stored), random(33, shape[1], seed=1)
    bias = random(shape[0], seed=2) if has_bias else None

    product = ops.linear(x, quantized(weight, bias))

    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert (product - expected).norm() < 0.015 * expected.norm()


def test_a_gated_product_is_near_the_exact_one() -> None:
    weight, bias, x = random(2 * 75, 130), random(2 * 75, seed=1), random(33, 130, seed=2)

    gated = ops.gated_weight(weight, bias, torch.float32, Packing.INT8_PANELS)
    product = ops.gated_linear(x, gated)

    gate, up = (x.double() @ weight.double().T + bias).chunk(2, dim=1)
    expected = torch.nn.functional.silu(gate) * up
    assert (product - expected).norm() < 0.03 * expected.norm()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    weight, x = quantized(random(200, 96)), random(700, 96, seed=1)
    together = ops.linear(x, weight)

    for size in (*range(1, 30), 64, 300):
        assert torch.equal(ops.linear(x[:size], weight), together[:size]), size


def test_a_huge_input_leaves_other_groups_as_they_are() -> None:
    weight, x = random(37, 4 * GROUP), random(9, 4 * GROUP, seed=1)
    weight[:, 7] = 0
    packed, clean = quantized(weight), x.clone()
    x[:, 7] = 1e6
    clean[:, :GROUP] = 0

    error = ops.linear(x, packed).double() - clean.double() @ weight.double().T

    assert error.norm() < 0.015 * (clean.double() @ weight.double().T).norm()


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(spoilt: float) -> None:
    weight, x = quantized(random(37, 53)), random(3, 53, seed=1)
    clean = ops.linear(x, weight)
    x[1, 50] = spoilt

    product = ops.linear(x, weight)

    assert not product[1].isfinite().any()
    assert torch.equal(product[::2], clean[::2])


def test_rows_of_nothing_give_the_bias() -> None:
    weight, bias = random(37, 53), random(37, seed=1)
    weight[5] = 0
    x = torch.stack([torch.zeros(53), torch.full((53,), 1e-40), random(53)])

    product = ops.linear(x, quantized(weight, bias))

    assert torch.equal(product[:2], bias.expand(2, -1))
    assert product[2, 5] == bias[5]
