"""Buffers that live from step to step, so that a step touches no fresh memory."""

import math

import torch
from torch import Tensor


class Workspace:
    """Named scratch buffers of one rank; each grows to the largest ask and stays.

    A buffer's content lasts until the next `take` of the same name. On CPU this matters more
    than it seems: writing to freshly mapped memory costs several times the write itself.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Memory held by all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised contiguous tensor that shares the buffer `name`."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            # Out of inference mode: the buffer outlives the step that asks first.
            with torch.inference_mode(mode=False):
                buffer = torch.empty(size, dtype=dtype, device=self.device)
            self._buffers[name, dtype] = buffer
        return buffer[:size].view(shape)
