"""Triton's interpreter, mended where it computes bfloat16 and float8 wrongly.

The interpreter keeps bfloat16 as 16-bit integers. Its matrix products and arithmetic take those for
numbers, silently, and its conversion from float32 rounds otherwise than GPUs and torch do. Here
operands are widened first and results rounded to nearest, ties to even; and what becomes float8 is
rounded by torch, as the interpreter is off by one unit or two. With Triton 3.6 and NumPy 2.5 it
cannot loop. This reaches into private parts of Triton: `test_interpreter.py` fails where they have
changed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def choose_device() -> str:
    """Return where kernels run: a CUDA device, or else the CPU, in the interpreter."""
    if torch.cuda.is_available():
        return "cuda"
    import triton

    if not triton.knobs.runtime.interpret:
        raise RuntimeError(
            "Triton's interpreter is off, and torch sees no CUDA device.\n"
            "Set TRITON_INTERPRET=1: tests/conftest.py does where there is no NVIDIA driver."
        )
    _mend()
    return "cpu"


def _widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(bits.shape)


def _round_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(np.shape(values))
    to_even = (bits >> 16) & 1
    rounded = ((bits + 0x7FFF + to_even) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _round_float8(values: np.ndarray) -> np.ndarray:
    wide = torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(np.shape(values))
    bits: np.ndarray = wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return bits


def _mend() -> None:
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    builder.binary_op = _widen_operands(builder.binary_op)
    builder.create_dot = _widen_matrices(builder.create_dot)
    convert = _convert_rightly(builder.cast_impl)
    # The builder has made aliases of it, which would go on calling the old one.
    for name in ("cast_impl", "create_fp_ext", "create_fp_trunc"):
        setattr(builder, name, convert)
    builder.create_fp_to_fp = _convert_rightly(builder.create_fp_to_fp)
    interpreter._patch_lang_tensor = _index_by_scalars(interpreter._patch_lang_tensor)


def _is(handle: Any, dtype: Any) -> bool:
    from triton.runtime.interpreter import TensorHandle

    return isinstance(handle, TensorHandle) and handle.dtype.scalar == dtype


def _widened(handle: Any) -> Any:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if _is(handle, tl.bfloat16) and handle.data.dtype == np.uint16:
        return TensorHandle(_widen(handle.data), tl.float32)
    return handle


def _rounded(values: np.ndarray, dtype: Any) -> Any:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    bits = _round_bfloat16(values) if dtype == tl.bfloat16 else _round_float8(values)
    return TensorHandle(bits, dtype)


def _widen_operands(original: Callable[..., Any]) -> Callable[..., Any]:
    import triton.language as tl

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        result = original(self, _widened(lhs), _widened(rhs), op)
        if not _is(lhs, tl.bfloat16) or result.data.dtype == np.bool_:
            return result
        return _rounded(result.data, tl.bfloat16)

    return binary_op


def _widen_matrices(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return original(self, _widened(a), _widened(b), d, *rest)

    return create_dot


def _convert_rightly(original: Callable[..., Any]) -> Callable[..., Any]:
    import triton.language as tl

    def convert(self: Any, src: Any, dst_type: Any, *rest: Any) -> Any:
        to = dst_type.scalar
        if _is(src, tl.bfloat16) and to != tl.bfloat16:
            wide = _widened(src)
            return wide if to == tl.float32 else original(self, wide, dst_type, *rest)
        if _is(src, tl.float32) and to in (tl.bfloat16, tl.float8e4nv):
            return _rounded(src.data, to)
        return original(self, src, dst_type, *rest)

    return convert


def _index_by_scalars(original: Callable[..., Any]) -> Callable[..., Any]:
    def patch_tensor(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        # Scalars are arrays of one element, of which NumPy makes no int by itself.
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    return patch_tensor
