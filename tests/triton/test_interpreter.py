"""Canaries: the interpreter computes as GPUs do, or the other tests here mean nothing."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def _arithmetic_kernel(a, b, products, sums, matrix, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(a + place)
    y = tl.load(b + place)
    tl.store(products + place, x * y)
    tl.store(sums + place, (x.to(tl.float32) + y.to(tl.float32)).to(x.dtype))
    tl.store(matrix + place, tl.dot(x, y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_arithmetic_is_that_of_torch(dtype: torch.dtype, device: torch.device) -> None:
    size = 16
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    products, sums = torch.empty_like(a), torch.empty_like(a)
    matrix = torch.empty(size, size, device=device)
    _arithmetic_kernel[(1,)](a, b, products, sums, matrix, SIZE=size)
    assert torch.equal(products, a * b)
    assert torch.equal(sums, a + b)
    precision = 1e-5 if device.type == "cpu" or dtype != torch.float32 else 1e-2  # tf32
    torch.testing.assert_close(matrix, a.float() @ b.float(), rtol=precision, atol=precision)


@triton.jit
def _convert_kernel(values, target, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(target + place, tl.load(values + place).to(target.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_conversion_is_that_of_torch(dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(2)
    values = (8.0 * torch.randn(1024, generator=generator)).exp2().clamp(max=448).to(device)
    target = torch.empty(1024, device=device).to(dtype)
    _convert_kernel[(1,)](values, target, SIZE=1024)
    assert torch.equal(target.float(), values.to(dtype).float())
