"""Write safetensors files piece by piece, so that no whole tensor has to be in memory.

The safetensors package writes whole tensors only. The format: the header's length as 8 bytes
little-endian, the header as JSON padded with spaces, then the values one tensor after the other.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ALIGNMENT = 8
INDEX_NAME = "model.safetensors.index.json"
# What transformers asks for before it reads a file.
FILE_METADATA = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """Name and size of a tensor that is going to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: F32, F16 or BF16."""
    num_bytes: int


class SafetensorsFile:
    """One file whose tensors may be filled in any order, from any thread."""

    def __init__(self, path: Path, plans: Sequence[TensorPlan]) -> None:
        header: dict[str, object] = {"__metadata__": FILE_METADATA}
        offset = 0
        self._offsets = {}
        for plan in plans:
            self._offsets[plan.name] = offset
            header[plan.name] = {
                "dtype": plan.dtype,
                "shape": plan.shape,
                "data_offsets": [offset, offset + plan.num_bytes],
            }
            offset += plan.num_bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text = text.ljust(math.ceil(len(text) / ALIGNMENT) * ALIGNMENT)
        self._start = 8 + len(text)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.ftruncate(self._descriptor, self._start + offset)
            os.pwrite(self._descriptor, len(text).to_bytes(8, "little") + text, 0)
        except BaseException:
            self.close()
            raise

    def write(self, name: str, offset: int, values: memoryview) -> None:
        """Write bytes of a tensor at a byte offset inside it."""
        position = self._start + self._offsets[name] + offset
        while values:
            written = os.pwrite(self._descriptor, values, position)
            values = values[written:]
            position += written

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def plan_shards(
    plans: Iterable[TensorPlan], max_shard_bytes: int
) -> list[tuple[str, list[TensorPlan]]]:
    """Distribute tensors over files, in order; each file but the last has one tensor or more."""
    shards: list[list[TensorPlan]] = [[]]
    for plan in plans:
        if shards[-1] and sum(p.num_bytes for p in shards[-1]) + plan.num_bytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(plan)
    if len(shards) == 1:
        return [("model.safetensors", shards[0])]
    count = len(shards)
    return [(f"model-{i:05}-of-{count:05}.safetensors", shard) for i, shard in enumerate(shards, 1)]


def write_index(folder: Path, shards: Sequence[tuple[str, list[TensorPlan]]]) -> None:
    """Write the file that tells which shard holds which tensor."""
    index = {
        "metadata": {"total_size": sum(p.num_bytes for _, plans in shards for p in plans)},
        "weight_map": {plan.name: name for name, plans in shards for plan in plans},
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2))
