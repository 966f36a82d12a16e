"""Where the tensors of a safetensors file lie, for who reads them by offset.

The safetensors package maps files and does not tell. See engine/safetensors_writer.py for the
format.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import InvalidModel

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit
_METADATA = "__metadata__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
}
"""What plain and quantised checkpoints hold."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    """Of its first byte, from the beginning of the file."""


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return a file's tensors by name.

    Raises InvalidModel when the file is missing, broken, or holds what no checkpoint of ours does.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header would be {length} bytes long")
            entries = json.loads(file.read(length))
        start, size = _LENGTH_BYTES + length, path.stat().st_size
        entries.pop(_METADATA, None)
        return {name: _stored(entry, start, size) for name, entry in entries.items()}
    except FileNotFoundError:
        raise InvalidModel(
            f"{path.parent} has no {path.name}.",
            "Give a folder with safetensors weights; other formats are not read.",
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidModel(f"{path} cannot be read: {error}.", "Fetch the model again.") from error


def _stored(entry: dict[str, Any], start: int, size: int) -> StoredTensor:
    shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
    first, last = entry["data_offsets"]
    if last - first != math.prod(shape) * dtype.itemsize or not 0 <= start + last <= size:
        raise ValueError("a tensor's bytes are not where its header says")
    return StoredTensor(shape, dtype, start + first)
