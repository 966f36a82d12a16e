"""Random weights in place of a checkpoint, for benchmarks of models whose weights are not at hand.

They are small, so that logits stay finite, and differ from row to row. Nothing tells what a tensor
means: norms and biases are as small and as random as matrices. Of a quantised checkpoint, integers,
float8 and scales are random, and so small that what they stand for is as small as the rest.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from types import TracebackType

import torch
from torch import Tensor

from engine.quantization_config import Fp8Scheme, QuantizationConfig, Scheme
from engine.tensor_content import TensorContent, content_of, scale_dtype
from engine.weights import ALL
from kernels.quantized_matrix import FP8_MAX

_SEED = 0
# Tensors repeat these values. A prime number of them, so that no two rows of a matrix are alike.
_NUM_VALUES = 1_000_003
_LARGEST = 0.05
_LARGEST_INT4 = 16  # with whatever zero beside it


class DummyCheckpoint:
    """Has every tensor that is expected of it. See `engine.weights.WeightSource`."""

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        quantization: QuantizationConfig | None = None,
    ) -> None:
        """Draw the values, the same on every rank.

        Args:
            dtype: what the tensors are "stored" in that are not quantised.
            device: where they are made, so that nothing is copied there.
            quantization: of the checkpoint they stand for.
        """
        generator = torch.Generator().manual_seed(_SEED)
        values = torch.empty(_NUM_VALUES).uniform_(-_LARGEST, _LARGEST, generator=generator)
        self._device = device
        self._scheme = None if quantization is None else quantization.scheme
        self._values: dict[TensorContent | None, Tensor] = {None: values.to(device, dtype)}
        if self._scheme is not None:
            quantized = _quantized_values(values, self._scheme, dtype, generator)
            self._values |= {content: drawn.to(device) for content, drawn in quantized.items()}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> "DummyCheckpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._shapes.clear()

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str]) -> None:
        """Learn which tensors there are to be."""
        self._shapes = dict(expected)

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        """Make a share; equal shares of equal tensors are equal, whichever rank asks."""
        scheme, content = self._scheme, None
        if scheme is not None:
            content = content_of(name, scheme, self._shapes)
            if content is TensorContent.GROUPS:
                return _group_index(scheme, *self._shapes[name])[rows].to(self._device)
        values = self._values[content]
        shares = (rows, columns)[: len(self._shapes[name])]
        sizes = zip(self._shapes[name], shares, strict=True)
        bounds = [share.indices(size) for size, share in sizes]
        shape = [stop - begin for begin, stop, _ in bounds]
        tensor = values.new_empty(math.prod(shape))
        # From another of the values for each share, to their end and round again.
        start = zlib.crc32(f"{name} {bounds}".encode()) % _NUM_VALUES
        num_first = min(_NUM_VALUES - start, len(tensor))
        tensor[:num_first] = values[start : start + num_first]
        rest = tensor[num_first:]
        num_rounds = len(rest) // _NUM_VALUES
        rounds = rest[: num_rounds * _NUM_VALUES].view(num_rounds, _NUM_VALUES)
        rounds.copy_(values.expand(num_rounds, _NUM_VALUES))
        last = rest[num_rounds * _NUM_VALUES :]
        last.copy_(values[: len(last)])
        return tensor.view(shape)


def _quantized_values(
    values: Tensor, scheme: Scheme, dtype: torch.dtype, generator: torch.Generator
) -> dict[TensorContent | None, Tensor]:
    """Return what integers, float8 and scales repeat, made of the `values` of the others."""
    words = torch.iinfo(torch.int32)
    integers = torch.randint(words.min, words.max + 1, values.shape, generator=generator)
    # Far from 0: one alone may have a whole matrix.
    scales = (values.abs() + _LARGEST) / 2
    scales /= FP8_MAX if isinstance(scheme, Fp8Scheme) else _LARGEST_INT4
    return {
        TensorContent.INTEGERS: integers.to(torch.int32),
        TensorContent.FLOAT8: (values / _LARGEST * FP8_MAX).to(torch.float8_e4m3fn),
        TensorContent.SCALES: scales.to(scale_dtype(scheme, dtype)),
    }


def _group_index(scheme: Scheme, num_inputs: int) -> Tensor:
    """Return the group of each input [inputs] int32, in an order of their own.

    The same for all layers with so many inputs, as those that share theirs are quantised.
    """
    assert not isinstance(scheme, Fp8Scheme)
    generator = torch.Generator().manual_seed(_SEED)
    order = torch.randperm(num_inputs, generator=generator)
    return (order // (scheme.group_size or num_inputs)).to(torch.int32)
