"""Carry each step's input from rank 0 to the followers: one message, or two for a long one."""

import numpy as np
import torch
from torch import Tensor

from engine.parallel import TensorParallel
from engine.step_input import StepInput

# Receivers must know a message's length beforehand. 16 KiB hold a decode step of 100 sequences of
# 400 tokens; what is longer follows in a second message, whose length the first one tells.
_FIRST_LENGTH = 4096
_STOP = 0


class StepChannel:
    """Both ends of the channel; rank 0 sends, the others receive."""

    def __init__(self, group: TensorParallel) -> None:
        self._group = group
        self._first = torch.zeros(_FIRST_LENGTH, dtype=torch.int32)

    def send(self, step: StepInput) -> None:
        """Give every follower a step."""
        if self._group.size == 1:
            return
        packed = torch.from_numpy(step.pack())
        head = packed[:_FIRST_LENGTH]
        self._first[: len(head)] = head
        self._group.broadcast(self._first)
        if len(packed) > _FIRST_LENGTH:
            self._group.broadcast(packed[_FIRST_LENGTH:])

    def send_stop(self) -> None:
        """Tell every follower that no step comes any more."""
        self._first[0] = _STOP
        self._group.broadcast(self._first)

    def receive(self) -> StepInput | None:
        """Wait for the next step; None: rank 0 has stopped."""
        first: Tensor = self._group.broadcast(self._first)
        length = int(first[0])
        if length == _STOP:
            return None
        packed = first[: min(length, _FIRST_LENGTH)].numpy()
        if length > _FIRST_LENGTH:
            rest = torch.empty(length - _FIRST_LENGTH, dtype=torch.int32)
            packed = np.concatenate((packed, self._group.broadcast(rest).numpy()))
        return StepInput.unpack(packed)
