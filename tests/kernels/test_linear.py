"""Linear layers, packed and plain, against a product in float64."""

from collections.abc import Iterator

import pytest
import torch

from kernels import cpu_linear, ops

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture
def no_packing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise RuntimeError("not on this processor")

    with monkeypatch.context() as context:
        context.setattr(cpu_linear, "pack", refuse)
        yield


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 64, 129])
def test_linear_equals_the_exact_product(
    dtype: torch.dtype, has_bias: bool, num_tokens: int
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    weight = torch.randn(37, 53, generator=generator).to(dtype)
    bias = torch.randn(37, generator=generator).to(dtype) if has_bias else None
    x = torch.randn(num_tokens, 53, generator=generator).to(dtype)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())

    for pack in {False, ops.can_pack(dtype, CPU)}:
        product = ops.linear(x, ops.linear_weight(weight, bias, pack=pack))
        assert product.dtype == dtype
        tolerance = TOLERANCES[dtype] * expected.abs().max().item()
        torch.testing.assert_close(product.double(), expected, atol=tolerance, rtol=0)


def test_float32_packs_on_this_processor() -> None:
    assert ops.can_pack(torch.float32, CPU)


def test_packed_linear_takes_rows_of_a_larger_tensor() -> None:
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    x = torch.randn(9, 48, generator=torch.Generator().manual_seed(1))[::2, :24]

    product = ops.linear(x, ops.linear_weight(weight, None, pack=True))

    torch.testing.assert_close(product, x @ weight.T)


@pytest.mark.usefixtures("no_packing")
def test_a_torch_that_cannot_pack_is_noticed_before_any_weight_is() -> None:
    assert not ops.can_pack(torch.float32, CPU)


def test_a_wrong_product_counts_as_unable_to_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "linear", lambda x, weight: torch.zeros(3, 48))

    assert not ops.can_pack(torch.float32, CPU)
