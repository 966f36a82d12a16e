"""Brings a step's integers to the device in one copy."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.layout import IntArray

_ALIGNMENT = 4
"""int32s: kernels may assume that every array begins at 16 bytes."""
_NUM_HOST_BUFFERS = 2


class StagingBuffer:
    """A buffer on the device and pinned ones on the host, which grow to the largest ask.

    Arrays of the same shapes lie at the same addresses each time, as a CUDA graph needs, unless the
    buffer had to grow in between: `reserve` prevents that.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._hosts: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        self._target = torch.empty(0, dtype=torch.int32, device=device)
        self._turn = 0

    def reserve(self, num_ints: int) -> None:
        """Make room for so many integers in all, alignment included."""
        if num_ints <= len(self._target):
            return
        num_ints = max(num_ints, 2 * len(self._target))
        # Out of inference mode: the buffers outlive the step that asks first.
        with torch.inference_mode(mode=False):
            self._target = torch.empty(num_ints, dtype=torch.int32, device=self._device)
            self._hosts = [
                torch.empty(num_ints, dtype=torch.int32, pin_memory=self._is_cuda)
                for _ in range(_NUM_HOST_BUFFERS)
            ]
        if self._is_cuda:
            self._copied = [torch.cuda.Event() for _ in range(_NUM_HOST_BUFFERS)]

    def upload(self, arrays: Sequence[IntArray]) -> list[Tensor]:
        """Return each array on the device, good until the next upload of the same stream."""
        sizes = np.array([array.size for array in arrays])
        aligned = -(-sizes // _ALIGNMENT) * _ALIGNMENT
        starts = (np.cumsum(aligned) - aligned).tolist()
        num_ints = int(aligned.sum())
        self.reserve(num_ints)
        self._turn = (self._turn + 1) % _NUM_HOST_BUFFERS
        host = self._hosts[self._turn]
        if self._is_cuda:
            self._copied[self._turn].synchronize()  # of two steps ago: done long since
        flat = host.numpy()
        for array, start in zip(arrays, starts, strict=True):
            flat[start : start + array.size] = array.reshape(-1)
        self._target[:num_ints].copy_(host[:num_ints], non_blocking=True)
        if self._is_cuda:
            self._copied[self._turn].record()
        return [
            self._target[start : start + array.size].view(array.shape)
            for array, start in zip(arrays, starts, strict=True)
        ]
