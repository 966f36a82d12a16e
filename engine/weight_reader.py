"""Read weights for a GPU: threads fill pinned buffers while earlier ones are copied to the device.

safetensors maps files, so one thread waits for each page and the copy to the device starts from
memory that is not pinned, through a buffer of the driver's. Here a share is cut into chunks of
rows; a thread reads a chunk with pread and starts its copy on a stream of its own, so that the
disk, the threads and the bus work at once, and the copies of one tensor overlap with the reads of
the next.

The chunks of a share of columns are read whole and cut on the host: what the other ranks need of
these rows lies in the page cache then, and rows are too short to be read one by one.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import torch
from torch import Tensor

from engine.errors import InvalidModel
from engine.safetensors_header import StoredTensor, read_header
from engine.weights import ALL, Checkpoint, WeightSource, check_tensors, find_weight_files

_NUM_THREADS = 4  # of each rank; ranks share the machine's cores
_CHUNK_BYTES = 8 << 20


def open_weights(folder: Path, device: torch.device) -> WeightSource:
    """Open a model folder's weights the way that is best for a device.

    On CPU that is `Checkpoint`: what it maps is what is needed. The same where the driver gives no
    pinned memory. Raises InvalidModel when a file is missing or broken.
    """
    if device.type == "cpu":
        return Checkpoint(folder)
    try:
        return ParallelCheckpoint(folder, device)
    except RuntimeError:  # of CUDA: a container may limit what can be pinned
        return Checkpoint(folder)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Host memory for a chunk on its way to the device."""

    memory: Tensor
    """[_CHUNK_BYTES or more] uint8, pinned for CUDA"""
    copied: torch.cuda.Event | None
    """When its last copy is over; None: copies are over when they return."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor and the file it is in."""

    descriptor: int
    path: Path
    tensor: StoredTensor


class ParallelCheckpoint:
    """The safetensors files of a model folder, read onto a device. See `engine.weights`."""

    def __init__(
        self, folder: Path, device: torch.device, *, chunk_bytes: int = _CHUNK_BYTES
    ) -> None:
        """Open the files and allocate the buffers, two for each thread.

        Args:
            folder: with model.safetensors, or with shards and model.safetensors.index.json.
            device: where tensors go. On CPU nothing is pinned and nothing overlaps.
            chunk_bytes: read at once; a row is never cut.

        Raises InvalidModel when a file is missing or broken.
        """
        self._folder = folder
        self._device = device
        self._chunk_bytes = chunk_bytes
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None
        self._buffers: SimpleQueue[_Buffer] = SimpleQueue()
        for _ in range(2 * _NUM_THREADS):
            memory = torch.empty(chunk_bytes, dtype=torch.uint8, pin_memory=is_cuda)
            self._buffers.put(_Buffer(memory, torch.cuda.Event() if is_cuda else None))
        with ExitStack() as files:
            self._places = dict(_open_all(folder, files))
            self._threads = files.enter_context(ThreadPoolExecutor(_NUM_THREADS))
            self._files = files.pop_all()

    def __enter__(self) -> "ParallelCheckpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.close()
        if self._stream is not None:
            self._stream.synchronize()  # before the buffers go

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str]) -> None:
        """Do what `Checkpoint.check` does."""
        found = {name: place.tensor.shape or (1,) for name, place in self._places.items()}
        check_tensors(self._folder, found, expected, ignored)

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        """Do what `Checkpoint.read` does; the tensor is on the device.

        It is ready for work on the current stream, which waits for the last copies.
        """
        place = self._places[name]
        shape = place.tensor.shape or (1,)
        num_columns = shape[1] if len(shape) > 1 else 1
        first, last, _ = rows.indices(shape[0])
        left, right, _ = columns.indices(num_columns)
        target = torch.empty(
            (last - first, right - left), dtype=place.tensor.dtype, device=self._device
        )
        if self._stream is not None:
            # The target's memory may have been another tensor's, which is still being read.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        row_bytes = num_columns * place.tensor.dtype.itemsize
        step = max(self._chunk_bytes // max(row_bytes, 1), 1)
        starts = range(first, last, step)
        chunks = [(begin, min(begin + step, last)) for begin in starts]

        def copy(chunk: tuple[int, int]) -> None:
            begin, end = chunk
            self._copy(place, begin, end, slice(left, right), target[begin - first : end - first])

        if len(chunks) == 1:
            copy(chunks[0])  # the pool would only add its own time
        else:
            list(self._threads.map(copy, chunks))
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        if len(shape) > 1:
            return target
        return target[:, 0] if place.tensor.shape else target[0, 0]

    def _copy(self, place: _Place, begin: int, end: int, columns: slice, target: Tensor) -> None:
        """Read rows and start the copy of their columns to the device."""
        buffer = self._buffers.get()
        try:
            if buffer.copied is not None:
                buffer.copied.synchronize()
            source = self._fill(buffer, place, begin, end, columns)
            if buffer.copied is None:
                target.copy_(source)
                return
            with torch.cuda.stream(self._stream):
                target.copy_(source, non_blocking=True)
                buffer.copied.record(self._stream)
        finally:
            self._buffers.put(buffer)

    def _fill(self, buffer: _Buffer, place: _Place, begin: int, end: int, columns: slice) -> Tensor:
        """Return the rows' columns, contiguous, in the buffer where they have room."""
        tensor = place.tensor
        width = tensor.shape[1] if len(tensor.shape) > 1 else 1
        row_bytes = width * tensor.dtype.itemsize
        num_bytes = (end - begin) * row_bytes
        offset = tensor.offset + begin * row_bytes
        num_kept = columns.stop - columns.start
        if num_kept == width:
            memory = _room(buffer.memory, num_bytes)
            _read_fully(place, memory, offset)
            return memory.view(tensor.dtype).view(-1, width)
        whole = torch.empty(num_bytes, dtype=torch.uint8)
        _read_fully(place, whole, offset)
        kept = _room(buffer.memory, (end - begin) * num_kept * tensor.dtype.itemsize)
        part = kept.view(tensor.dtype).view(-1, num_kept)
        return part.copy_(whole.view(tensor.dtype).view(-1, width)[:, columns])


def _open_all(folder: Path, files: ExitStack) -> Iterator[tuple[str, _Place]]:
    for path in find_weight_files(folder):
        tensors = read_header(path)
        descriptor = os.open(path, os.O_RDONLY)
        files.callback(os.close, descriptor)
        for name, tensor in tensors.items():
            yield name, _Place(descriptor, path, tensor)


def _room(memory: Tensor, num_bytes: int) -> Tensor:
    """Return so much of a buffer, or memory of its own for a single row that is longer."""
    if num_bytes > len(memory):
        return torch.empty(num_bytes, dtype=torch.uint8)
    return memory[:num_bytes]


def _read_fully(place: _Place, memory: Tensor, offset: int) -> None:
    """Fill `memory` [bytes] uint8 from a place in the file; other threads run meanwhile."""
    left = memory.numpy().data
    while left:
        num_read = os.preadv(place.descriptor, [left], offset)
        if num_read == 0:
            raise InvalidModel(f"{place.path} has been cut short.", "Fetch the model again.")
        left = left[num_read:]
        offset += num_read
