"""Where the Triton kernels run: compiled on a CUDA device, or interpreted on CPU."""

import pytest
import torch

from tests.triton.interpreter import choose_device

DEVICE = torch.device(choose_device())


@pytest.fixture(scope="session")
def device() -> torch.device:
    return DEVICE
