"""Convert a GGUF file into a model folder as Hugging Face lays it out.

Weights that the file quantises become bfloat16; a file in float32, float16 or bfloat16 keeps its
type, so nothing is lost. Memory stays within a few chunks per thread, however large the model.
"""

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from engine.gguf_config import generation_config, model_config
from engine.gguf_reader import GgufFile
from engine.gguf_tensors import TensorSource, read_rows, tensor_sources
from engine.gguf_tokenizer import build_tokenizer, tokenizer_config
from engine.progress import Report
from engine.safetensors_writer import SafetensorsFile, TensorPlan, plan_shards, write_index

MAX_SHARD_BYTES = 4 << 30
CHUNK_VALUES = 1 << 19  # a chunk's temporaries stay in the cache of a core
MAX_THREADS = 8

_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def convert_gguf(
    path: Path, folder: Path, *, report: Report, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the model of a GGUF file into a folder that exists and is empty.

    Raises InvalidModel, before anything is written, when the file cannot be served.
    """
    file = GgufFile.open(path)
    dtype = _dtype(file)
    config = model_config(file, _DTYPE_NAMES[dtype])
    sources = tensor_sources(file, config)
    tokenizer = build_tokenizer(file)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(file))
    _write_json(folder / "generation_config.json", generation_config(file))
    _write_json(folder / "config.json", config)
    _write_weights(sources, folder, dtype, max_shard_bytes, _Progress(path.name, sources, report))


def gguf_config(path: Path) -> dict[str, Any]:
    """Return config.json of the folder that `convert_gguf` would write, from the header alone.

    Raises InvalidModel when the file cannot be served.
    """
    file = GgufFile.open(path)
    return model_config(file, _DTYPE_NAMES[_dtype(file)])


class _Progress:
    """Counts the values written."""

    def __init__(self, name: str, sources: list[TensorSource], report: Report) -> None:
        self._phase = f"Converting {name}"
        self._report = report
        self._done = 0
        self._total = sum(math.prod(source.shape) for source in sources)

    def add(self, num_values: int) -> None:
        self._done += num_values
        self._report(self._phase, self._done, self._total)


def _dtype(file: GgufFile) -> str:
    """Return the type of the folder's weights; vectors are F32 in every file and do not count."""
    types = {tensor.quant_type for tensor in file.tensors.values() if len(tensor.shape) > 1}
    if types == {GGMLQuantizationType.F32}:
        return "F32"
    if types == {GGMLQuantizationType.F16}:
        return "F16"
    return "BF16"


def _write_weights(
    sources: list[TensorSource],
    folder: Path,
    dtype: str,
    max_shard_bytes: int,
    progress: _Progress,
) -> None:
    by_name = {source.name: source for source in sources}
    plans = [
        TensorPlan(name, source.shape, dtype, math.prod(source.shape) * _DTYPE_BYTES[dtype])
        for name, source in by_name.items()
    ]
    shards = plan_shards(plans, max_shard_bytes)
    for shard_name, shard in shards:
        with SafetensorsFile(folder / shard_name, shard) as file:
            _write_shard(file, [by_name[plan.name] for plan in shard], dtype, progress)
    if len(shards) > 1:
        write_index(folder, shards)


def _write_shard(
    file: SafetensorsFile, sources: list[TensorSource], dtype: str, progress: _Progress
) -> None:
    def write(chunk: tuple[TensorSource, int, int]) -> int:
        return _write_chunk(file, dtype, *chunk)

    threads = ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS))
    try:
        for num_values in threads.map(write, _chunks(sources)):
            progress.add(num_values)
    finally:
        # After an error or Ctrl-C nobody wants the chunks that have not begun; those that have
        # must end before the file is closed.
        threads.shutdown(cancel_futures=True)


def _chunks(sources: list[TensorSource]) -> Iterator[tuple[TensorSource, int, int]]:
    """Cut tensors into ranges of rows."""
    for source in sources:
        num_rows = len(source.source.rows)
        step = max(1, CHUNK_VALUES // source.shape[-1])
        for begin in range(0, num_rows, step):
            yield source, begin, min(begin + step, num_rows)


def _write_chunk(
    file: SafetensorsFile, dtype: str, source: TensorSource, begin: int, end: int
) -> int:
    values = read_rows(source, begin, end)
    offset = begin * source.shape[-1] * _DTYPE_BYTES[dtype]
    file.write(source.name, offset, _cast(values, dtype).data.cast("B"))
    return values.size


def _cast(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Return values in the type of the file, bfloat16 as uint16."""
    if dtype == "F32":
        return np.ascontiguousarray(values)
    if dtype == "F16":
        return values.astype(np.float16, order="C")
    # Round to nearest, ties to even: add half of what is cut off, less one where the rest is even.
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
