"""Quantised matrices: cut, reordered, joined and packed, they mean what they did."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import gpu_library, ops, quantized_linear, quantized_reference
from kernels.quantized_matrix import (
    QuantizedMatrix,
    StoredAs,
    concatenate,
    round_to_fp8,
    take_rows,
)
from kernels.weights import Packing

NAN_CODES = (0x7F, 0xFF)


def make_matrix(
    stored_as: StoredAs, num_outputs: int, num_inputs: int, size: int, seed: int = 0
) -> QuantizedMatrix:
    generator = torch.Generator().manual_seed(seed)
    num_groups = -(-num_inputs // size)
    is_int4 = stored_as is StoredAs.INT4
    shape = (num_outputs, num_inputs)
    values = torch.randint(16 if is_int4 else 256, shape, generator=generator).to(torch.uint8)
    for code in NAN_CODES:
        values[values == code] = 1
    scales = torch.rand(num_outputs, num_groups, generator=generator) + 0.5
    zeros = torch.randint(17, scales.shape, generator=generator).to(torch.uint8)
    groups = torch.arange(num_inputs) // size
    return QuantizedMatrix(stored_as, values, scales, zeros if is_int4 else None, groups)


def shuffled(matrix: QuantizedMatrix) -> QuantizedMatrix:
    """The same with its inputs in another order."""
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(matrix.values.shape[1], generator=generator)
    groups = matrix.group_of_input[order]
    return replace(matrix, values=matrix.values[:, order], group_of_input=groups)


def packed(matrix: QuantizedMatrix) -> Tensor:
    return quantized_reference.dequantize(quantized_linear.pack(matrix, None, torch.float32))


@pytest.mark.parametrize("stored_as", StoredAs)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 24, 8), (7, 13, 13), (6, 22, 8), (3, 9, 4)])
def test_packed_weights_mean_the_same(stored_as: StoredAs, shape: tuple[int, int, int]) -> None:
    matrix = make_matrix(stored_as, *shape)

    assert torch.equal(packed(matrix), matrix.dequantize())
    assert torch.equal(packed(shuffled(matrix)), shuffled(matrix).dequantize())


def test_int4_takes_half_a_byte() -> None:
    weight = quantized_linear.pack(make_matrix(StoredAs.INT4, 8, 32, 8), None, torch.float32)

    assert weight.weight.shape == (8, 16)
    assert weight.groups is not None
    assert weight.groups.input_order is None


def test_a_weight_is_its_value_less_zero_times_scale() -> None:
    values = torch.tensor([[0, 15, 7, 8]], dtype=torch.uint8)
    matrix = QuantizedMatrix(
        StoredAs.INT4,
        values,
        scales=torch.tensor([[2.0, 0.5]]),
        zeros=torch.tensor([[8, 16]], dtype=torch.uint8),
        group_of_input=torch.tensor([0, 1, 1, 0]),
    )

    assert matrix.dequantize().tolist() == [[-16.0, -0.5, -4.5, 0.0]]
    assert matrix.group_size == 2
    assert matrix.input_order is not None
    assert matrix.input_order.tolist() == [0, 3, 1, 2]


@pytest.mark.parametrize("stored_as", StoredAs)
def test_parts_are_those_of_the_weights(stored_as: StoredAs) -> None:
    matrix = shuffled(make_matrix(stored_as, 9, 24, 8))
    weights = matrix.dequantize()
    index = torch.tensor([3, 1, 8, 3])

    assert torch.equal(matrix.rows(index).dequantize(), weights[index])
    assert torch.equal(matrix.columns(slice(5, 19)).dequantize(), weights[:, 5:19])
    of_plain, of_quantized = take_rows(weights, index), take_rows(matrix, index)
    assert isinstance(of_plain, Tensor)
    assert torch.equal(of_plain, weights[index])
    assert isinstance(of_quantized, QuantizedMatrix)
    assert torch.equal(of_quantized.dequantize(), weights[index])


def test_a_range_of_inputs_has_whole_groups_or_says_that_it_has_not() -> None:
    matrix = make_matrix(StoredAs.FP8, 2, 40, 8)

    assert matrix.columns(slice(16, 32)).group_size == 8
    assert matrix.columns(slice(16, 36)).group_size == 8  # the last may be short
    assert matrix.columns(slice(18, 22)).group_size == 4  # within one
    assert matrix.columns(slice(12, 32)).group_size is None
    assert shuffled(matrix).group_size == 8


def test_matrices_join_as_they_are_where_they_can() -> None:
    first, second = (make_matrix(StoredAs.INT4, 3, 16, 8, seed) for seed in (1, 2))
    weights = torch.cat((first.dequantize(), second.dequantize()))

    joined = concatenate([first, second])

    assert isinstance(joined, QuantizedMatrix)
    assert torch.equal(joined.dequantize(), weights)
    for other in (shuffled(second), make_matrix(StoredAs.FP8, 3, 16, 8), torch.ones(3, 16)):
        joined = concatenate([first, other])
        assert isinstance(joined, Tensor)
        meant = other if isinstance(other, Tensor) else other.dequantize()
        assert torch.equal(joined, torch.cat((first.dequantize(), meant)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float8_is_the_nearest_multiple_of_each_rows_scale(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(6, 40, generator=generator) * torch.logspace(-3, 2, 6)[:, None]).to(dtype)
    weight[2] = 0

    rounded = round_to_fp8(weight).dequantize()

    largest = weight.float().abs().amax(1, keepdim=True)
    # Half a unit of the third bit after the first, or of the least number.
    bound = (weight.float().abs() / 16).maximum(largest / 448 * 2**-10)
    assert ((rounded - weight.float()).abs() <= bound * 1.001).all()
    assert torch.equal(rounded.abs().amax(1), largest[:, 0]) or dtype == torch.float32


@pytest.mark.parametrize("stored_as", StoredAs)
def test_products_on_cpu_are_those_of_the_weights(stored_as: StoredAs) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = shuffled(make_matrix(stored_as, 10, 24, 8))
    x, bias = torch.randn(5, 24, generator=generator), torch.randn(10, generator=generator)
    weights = matrix.dequantize()

    weight = ops.linear_weight(matrix, bias, torch.float32, Packing.NONE)
    gated = ops.gated_weight(matrix, bias, torch.float32, Packing.NONE)

    torch.testing.assert_close(ops.linear(x, weight), x @ weights.T + bias, rtol=1e-4, atol=1e-3)
    gate, up = (x @ weights.T + bias).chunk(2, dim=1)
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(ops.gated_linear(x, gated), expected, rtol=1e-4, atol=1e-2)
    assert gated.num_outputs == 5


def test_cpu_and_machines_without_triton_dequantize(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")

    assert not ops.keeps_quantized(torch.device("cpu"))
    monkeypatch.setattr(gpu_library, "gpu_operations", object)
    assert ops.keeps_quantized(cuda)
    monkeypatch.setattr(gpu_library, "gpu_operations", lambda: None)
    assert not ops.keeps_quantized(cuda)
