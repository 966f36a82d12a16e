"""Read a GGUF file: its metadata, and its tensors as views of the mapped file.

The `gguf` package has a reader too; it makes numpy objects of every token string, which takes
seconds where this takes tenths, and it does not notice a file that was cut short. The package
still tells us the types and block sizes. The format is described in the ggml repository,
docs/gguf.md.
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from engine.errors import InvalidModel

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor as it lies in the file."""

    name: str
    shape: tuple[int, ...]
    """Row-major, as torch has it: the last dimension is the contiguous one."""
    quant_type: GGMLQuantizationType
    rows: NDArray[np.uint8]
    """Raw bytes, uint8 [number of rows, bytes of a row]; a vector is one row."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file, or all parts of a split one, holds."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Read the header. Raises InvalidModel for what is no whole GGUF file."""
        metadata: dict[str, Any] = {}
        tensors: dict[str, GgufTensor] = {}
        for part in reversed(_parts(path)):
            # The first part carries the metadata of the model; it is read last and wins.
            more_metadata, more_tensors = _Parser(part).parse()
            metadata |= more_metadata
            tensors |= more_tensors
        return cls(path, metadata, tensors)


def _parts(path: Path) -> list[Path]:
    """Return all files of a model that was split, the first one first."""
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    parts = [
        path.with_name(f"{match['stem']}-{part:05}-of-{count:05}.gguf")
        for part in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise InvalidModel(
            f"'{path}' is one of {count} parts, and these are missing: {', '.join(missing)}.",
            "Put all parts into one folder.",
        )
    return parts


class _CutShort(Exception):
    """The file ends before its header says so."""


class _Parser:
    """Walks through the header of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.stat().st_size < len(MAGIC):
            raise self._invalid("is too short to be a GGUF file")
        self._data = np.memmap(path, dtype=np.uint8, mode="r")
        self._buffer: memoryview = self._data.data
        self._position = 0

    def parse(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        """Return metadata and tensors."""
        try:
            return self._parse()
        except _CutShort:
            raise self._invalid("is cut short") from None
        except UnicodeDecodeError as error:
            raise self._invalid(f"holds a string that is not UTF-8 ({error})") from error

    def _parse(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if bytes(self._take(len(MAGIC))) != MAGIC:
            raise self._invalid("does not start with GGUF")
        version = self._number("<I")
        if version not in SUPPORTED_VERSIONS:
            raise self._invalid(f"has GGUF version {version}, not one of {SUPPORTED_VERSIONS}")
        num_tensors = self._number("<Q")
        num_fields = self._number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self._string()
            metadata[key] = self._value(self._value_type())
        infos = [self._tensor_info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._invalid(f"has alignment {alignment!r}")
        start = math.ceil(self._position / alignment) * alignment
        return metadata, {info[0]: self._tensor(start, *info) for info in infos}

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        num_dimensions = self._number("<I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self._invalid(f"gives tensor {name} {num_dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(num_dimensions))[::-1]
        return name, shape, self._number("<I"), self._number("<Q")

    def _tensor(
        self, start: int, name: str, shape: tuple[int, ...], type_id: int, offset: int
    ) -> GgufTensor:
        try:
            quant_type = GGMLQuantizationType(type_id)
        except ValueError:
            raise self._invalid(f"stores tensor {name} in an unknown type ({type_id})") from None
        block_size, block_bytes = GGML_QUANT_SIZES[quant_type]
        if shape[-1] % block_size:
            raise self._invalid(f"has rows of {shape[-1]} in tensor {name} of {quant_type.name}")
        num_rows = math.prod(shape[:-1])
        row_bytes = shape[-1] // block_size * block_bytes
        begin = start + offset
        end = begin + num_rows * row_bytes
        if end > len(self._data):
            raise _CutShort
        return GgufTensor(
            name, shape, quant_type, self._data[begin:end].reshape(num_rows, row_bytes)
        )

    def _take(self, num_bytes: int) -> memoryview:
        begin, end = self._position, self._position + num_bytes
        if end > len(self._buffer):
            raise _CutShort
        self._position = end
        return self._buffer[begin:end]

    def _number(self, layout: str) -> int:
        number: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return number

    def _string(self) -> str:
        return str(self._take(self._number("<Q")), "utf-8")

    def _value_type(self) -> GGUFValueType:
        type_id = self._number("<I")
        try:
            return GGUFValueType(type_id)
        except ValueError:
            raise self._invalid(f"has metadata of an unknown type ({type_id})") from None

    def _value(self, value_type: GGUFValueType) -> Any:
        if value_type == GGUFValueType.STRING:
            return self._string()
        if value_type == GGUFValueType.ARRAY:
            return self._array()
        return self._scalars(value_type, 1)[0]

    def _array(self) -> list[Any]:
        item_type = self._value_type()
        count = self._number("<Q")
        if item_type == GGUFValueType.STRING:
            return [self._string() for _ in range(count)]
        if item_type == GGUFValueType.ARRAY:
            raise self._invalid("has lists of lists in its metadata")
        return self._scalars(item_type, count)

    def _scalars(self, value_type: GGUFValueType, count: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[value_type])
        values = np.frombuffer(self._take(count * dtype.itemsize), dtype)
        if value_type == GGUFValueType.FLOAT32:
            # The shortest decimal of the same float32: 1e-05 rather than 9.999999747378752e-06.
            return [float(str(value)) for value in values]
        items: list[Any] = values.tolist()
        return items

    def _invalid(self, what: str) -> InvalidModel:
        return InvalidModel(f"'{self._path}' {what}.", "Fetch the GGUF file again.")
