"""The products with int4 and float8 weights, interpreted, against the oracle."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import quantized_linear, quantized_reference
from kernels.gpu import linear_tiles
from kernels.gpu.fp8_linear import fp8_linear
from kernels.gpu.int4_linear import int4_linear
from kernels.quantized_matrix import QuantizedMatrix, StoredAs
from kernels.weights import LinearWeight

KERNELS = {
    StoredAs.INT4: (int4_linear, quantized_reference.int4_linear),
    StoredAs.FP8: (fp8_linear, quantized_reference.fp8_linear),
}
# Of the largest result: a unit of its last bit, as sums in another order may round otherwise.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
NAN_CODES = (0x7F, 0xFF)


@pytest.fixture(autouse=True)
def fill_with_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is not written show."""
    empty = torch.empty

    def filled(*shape: Any, **settings: Any) -> Tensor:
        tensor = empty(*shape, **settings)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", filled)


def make_weight(
    stored_as: StoredAs,
    shape: tuple[int, int],
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    has_bias: bool = True,
    is_ordered: bool = True,
) -> LinearWeight:
    generator = torch.Generator().manual_seed(sum(shape))
    num_outputs, num_inputs = shape
    num_groups = -(-num_inputs // size)
    is_int4 = stored_as is StoredAs.INT4
    values = torch.randint(16 if is_int4 else 256, shape, generator=generator).to(torch.uint8)
    for code in NAN_CODES:
        values[values == code] = 1
    scales = torch.rand(num_outputs, num_groups, generator=generator) + 0.5
    zeros = torch.randint(17, scales.shape, generator=generator).to(torch.uint8)
    groups = torch.arange(num_inputs) // size
    if not is_ordered:
        groups = groups[torch.randperm(num_inputs, generator=generator)]
    bias = torch.randn(num_outputs, generator=generator) * 10 if has_bias else None
    matrix = QuantizedMatrix(
        stored_as,
        values.to(device),
        scales.to(device, torch.float16),
        zeros.to(device) if is_int4 else None,
        groups.to(device),
    )
    return quantized_linear.pack(matrix, None if bias is None else bias.to(device), dtype)


def make_x(num_tokens: int, num_inputs: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows of a larger tensor, with NaN all around."""
    generator = torch.Generator().manual_seed(num_tokens)
    around = torch.full((num_tokens + 2, num_inputs + 7), float("nan"), dtype=dtype)
    around[1:-1, :num_inputs] = torch.randn(num_tokens, num_inputs, generator=generator).to(dtype)
    return around.to(device)[1:-1, :num_inputs]


def check(stored_as: StoredAs, x: Tensor, weight: LinearWeight) -> None:
    kernel, oracle = KERNELS[stored_as]
    product, expected = kernel(x, weight), oracle(x, weight)
    assert product.dtype == x.dtype
    assert product.shape == expected.shape
    tolerance = TOLERANCES[x.dtype] * expected.float().abs().max().item()
    torch.testing.assert_close(product.float(), expected.float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("stored_as", StoredAs)
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(
    ("num_tokens", "shape", "size"),
    [
        (1, (1, 2), 2),
        (1, (70, 64), 32),
        (3, (33, 96), 96),
        (17, (5, 40), 8),
        (5, (66, 50), 20),  # the last group is short
        (2, (9, 13), 13),  # one group of odd size
    ],
)
def test_products_equal_the_oracles(
    stored_as: StoredAs,
    dtype: torch.dtype,
    num_tokens: int,
    shape: tuple[int, int],
    size: int,
    device: torch.device,
) -> None:
    weight = make_weight(stored_as, shape, size, dtype, device)

    check(stored_as, make_x(num_tokens, shape[1], dtype, device), weight)


@pytest.mark.parametrize("stored_as", StoredAs)
def test_many_tokens_take_larger_tiles(stored_as: StoredAs, device: torch.device) -> None:
    weight = make_weight(stored_as, (130, 32), 32, torch.bfloat16, device)

    check(stored_as, make_x(131, 32, torch.bfloat16, device), weight)


@pytest.mark.parametrize("stored_as", StoredAs)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_inputs_split_over_programs_add_up(
    stored_as: StoredAs, has_bias: bool, dtype: torch.dtype, device: torch.device
) -> None:
    shape, size = (20, 400), 32  # the last group is short
    columns = size // 2 if stored_as is StoredAs.INT4 else size
    tile = linear_tiles.linear_tile(2, columns, dtype)
    grid = linear_tiles.linear_grid(20, 2, 13, columns, tile)
    assert grid.shape == (1, 1, 3)

    weight = make_weight(stored_as, shape, size, dtype, device, has_bias)

    check(stored_as, make_x(2, 400, dtype, device), weight)


@pytest.mark.parametrize("stored_as", StoredAs)
def test_inputs_of_any_order_meet_their_weights(stored_as: StoredAs, device: torch.device) -> None:
    weight = make_weight(stored_as, (12, 48), 8, torch.float32, device, is_ordered=False)
    assert weight.groups is not None
    assert weight.groups.input_order is not None

    check(stored_as, make_x(4, 48, torch.float32, device), weight)


@pytest.mark.parametrize("stored_as", StoredAs)
def test_no_token_gives_no_row(stored_as: StoredAs, device: torch.device) -> None:
    weight = make_weight(stored_as, (6, 8), 8, torch.float16, device)
    x = torch.ones(0, 8, dtype=torch.float16, device=device)

    assert KERNELS[stored_as][0](x, weight).shape == (0, 6)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_every_finite_float8_is_exact(dtype: torch.dtype, device: torch.device) -> None:
    codes = torch.arange(256, device=device).to(torch.uint8).view(16, 16)
    codes[codes & 0x7F == 0x7F] = 0
    one_group = torch.zeros(16, dtype=torch.int64, device=device)
    scales = torch.ones(16, 1, device=device)
    matrix = QuantizedMatrix(StoredAs.FP8, codes, scales, None, one_group)

    product = fp8_linear(
        torch.eye(16, dtype=dtype, device=device), quantized_linear.pack(matrix, None, dtype)
    )

    assert torch.equal(product.T, codes.view(torch.float8_e4m3fn).to(dtype))


@pytest.mark.parametrize("num_tokens", [1, 64, 65, 700])
@pytest.mark.parametrize("num_outputs", [16, 4096, 150_000])
@pytest.mark.parametrize(("num_groups", "columns"), [(1, 4096), (32, 64), (3, 5), (112, 128)])
def test_programs_cover_every_step_and_none_is_idle(
    num_tokens: int, num_outputs: int, num_groups: int, columns: int
) -> None:
    tile = linear_tiles.linear_tile(num_tokens, columns, torch.bfloat16)
    grid = linear_tiles.linear_grid(num_outputs, num_tokens, num_groups, columns, tile)

    assert grid.shape[0] * tile.block_n >= num_outputs
    assert grid.shape[1] * tile.block_t >= num_tokens
    assert grid.num_steps == num_groups * -(-columns // tile.block_k)
    assert grid.shape[2] * grid.steps_per_split >= grid.num_steps
    assert (grid.shape[2] - 1) * grid.steps_per_split < grid.num_steps
