"""Host memory that a GPU reads and writes itself."""

import weakref

import torch
from torch import Tensor


def reachable_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised tensor on the host that kernels on `device` can reach.

    Registered, not taken from torch's pinned memory: that is handed out in powers of two, so a
    tier of half the host's memory would take all of it.

    Raises torch.cuda.CudaError when the system refuses to keep so much memory in place.
    """
    tensor = torch.empty(shape, dtype=dtype)
    if device.type == "cuda" and tensor.nbytes:
        runtime = torch.cuda.cudart()
        address = tensor.data_ptr()
        torch.cuda.check_error(runtime.cudaHostRegister(address, tensor.nbytes, 0))
        weakref.finalize(tensor, runtime.cudaHostUnregister, address)
    return tensor
