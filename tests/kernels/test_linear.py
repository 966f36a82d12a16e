"""Linear layers, packed and plain, against a product in float64."""

import importlib.metadata
import shutil
from collections.abc import Iterator

import pytest
import torch

from kernels import cpu_linear, native_linear, ops
from kernels.weights import Packing

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture
def no_packing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise RuntimeError("not on this processor")

    with monkeypatch.context() as context:
        context.setattr(cpu_linear, "pack", refuse)
        yield


def packings(dtype: torch.dtype) -> list[Packing]:
    """Those that work here; NONE always does."""
    works = {
        Packing.NONE: True,
        Packing.ONEDNN: cpu_linear.can_pack(dtype),
        Packing.PANELS: native_linear.can_pack(dtype),
    }
    return [packing for packing, is_there in works.items() if is_there]


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("stored", list(TOLERANCES))
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 64, 129])
def test_linear_equals_the_exact_product(
    dtype: torch.dtype, stored: torch.dtype, has_bias: bool, num_tokens: int
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    weight = torch.randn(37, 53, generator=generator).to(stored)
    bias = torch.randn(37, generator=generator).to(stored) if has_bias else None
    x = torch.randn(num_tokens, 53, generator=generator).to(dtype)
    exact_bias = 0 if bias is None else bias.to(dtype).double()
    expected = x.double() @ weight.to(dtype).double().T + exact_bias

    for packing in packings(dtype):
        product = ops.linear(x, ops.linear_weight(weight, bias, dtype, packing))
        assert product.dtype == dtype
        tolerance = TOLERANCES[dtype] * expected.abs().max().item()
        torch.testing.assert_close(product.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("stored", list(TOLERANCES))
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("num_tokens", "ffn"), [(1, 37), (7, 16), (64, 75)])
def test_gated_linear_equals_the_exact_products(
    dtype: torch.dtype, stored: torch.dtype, has_bias: bool, num_tokens: int, ffn: int
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    weight = torch.randn(2 * ffn, 53, generator=generator).to(stored)
    bias = torch.randn(2 * ffn, generator=generator).to(stored) if has_bias else None
    x = torch.randn(num_tokens, 53, generator=generator).to(dtype)
    exact_bias = 0 if bias is None else bias.to(dtype).double()
    gate, up = (x.double() @ weight.to(dtype).double().T + exact_bias).chunk(2, dim=1)
    expected = torch.nn.functional.silu(gate) * up

    for packing in packings(dtype):
        product = ops.gated_linear(x, ops.gated_weight(weight, bias, dtype, packing))
        assert product.dtype == dtype
        tolerance = TOLERANCES[dtype] * expected.abs().max().item()
        torch.testing.assert_close(product.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_rows_beside_it(stored: torch.dtype) -> None:
    if not native_linear.can_pack(torch.float32):
        pytest.skip("no compiled kernels here")
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(200, 96, generator=generator).to(stored)
    weight = ops.linear_weight(matrix, None, torch.float32, Packing.PANELS)
    x = torch.randn(700, 96, generator=generator)
    together = ops.linear(x, weight)

    for size in (*range(1, 30), 64, 300):
        assert torch.equal(ops.linear(x[:size], weight), together[:size]), size


def test_float32_packs_on_this_processor() -> None:
    assert ops.choose_packing(torch.float32, CPU) is not Packing.NONE


@pytest.mark.skipif(
    shutil.which("g++") is None or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="needs a C++ compiler and AVX2",
)
@pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="pageray")),
    reason="PageRay is not installed here, only to be imported: nothing was compiled",
)
def test_a_machine_with_a_compiler_has_the_compiled_kernels() -> None:
    assert ops.choose_packing(torch.float32, CPU) is Packing.PANELS


def test_packed_linear_takes_rows_of_a_larger_tensor() -> None:
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    x = torch.randn(9, 48, generator=torch.Generator().manual_seed(1))[::2, :24]

    for packing in packings(torch.float32):
        product = ops.linear(x, ops.linear_weight(weight, None, torch.float32, packing))
        torch.testing.assert_close(product, x @ weight.T)


@pytest.mark.usefixtures("no_packing")
def test_a_torch_that_cannot_pack_is_noticed_before_any_weight_is() -> None:
    assert not cpu_linear.can_pack(torch.float32)


def test_a_wrong_product_counts_as_unable_to_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "linear", lambda x, weight: torch.zeros(3, 48))

    assert not cpu_linear.can_pack(torch.float32)
