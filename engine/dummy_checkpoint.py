"""Random weights in place of a checkpoint, for benchmarks of models whose weights are not at hand.

They are small, so that logits stay finite, and differ from row to row. Nothing tells what a tensor
means: norms and biases are as small and as random as matrices.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from types import TracebackType

import torch
from torch import Tensor

from engine.weights import ALL

_SEED = 0
# Tensors repeat these values. A prime number of them, so that no two rows of a matrix are alike.
_NUM_VALUES = 1_000_003
_LARGEST = 0.05


class DummyCheckpoint:
    """Has every tensor that is expected of it. See `engine.weights.WeightSource`."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """Draw the values, the same on every rank.

        Args:
            dtype: what the tensors are "stored" in.
            device: where they are made, so that nothing is copied there.
        """
        generator = torch.Generator().manual_seed(_SEED)
        values = torch.empty(_NUM_VALUES).uniform_(-_LARGEST, _LARGEST, generator=generator)
        self._values = values.to(device, dtype)
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
        shares = (rows, columns)[: len(self._shapes[name])]
        sizes = zip(self._shapes[name], shares, strict=True)
        bounds = [share.indices(size) for size, share in sizes]
        shape = [stop - begin for begin, stop, _ in bounds]
        tensor = self._values.new_empty(math.prod(shape))
        # From another of the values for each share, to their end and round again.
        start = zlib.crc32(f"{name} {bounds}".encode()) % _NUM_VALUES
        num_first = min(_NUM_VALUES - start, len(tensor))
        tensor[:num_first] = self._values[start : start + num_first]
        rest = tensor[num_first:]
        num_rounds = len(rest) // _NUM_VALUES
        rounds = rest[: num_rounds * _NUM_VALUES].view(num_rounds, _NUM_VALUES)
        rounds.copy_(self._values.expand(num_rounds, _NUM_VALUES))
        last = rest[num_rounds * _NUM_VALUES :]
        last.copy_(self._values[: len(last)])
        return tensor.view(shape)
