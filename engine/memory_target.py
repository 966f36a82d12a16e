"""What a memory plan is made for: a device, the form of weights on it, and what is free there."""

from dataclasses import dataclass

import torch

from engine.config import EngineConfig
from engine.determinism import check_deterministic
from engine.device import check_kv_cache_dtype, choose_device, choose_dtype, choose_packing
from engine.errors import InvalidConfig
from engine.host import available_host_bytes
from engine.model_config import ModelConfig
from kernels import ops
from kernels.weights import Packing

# Neither can be asked for without the GPUs. A process of torch takes 0.5 to 0.6 GiB of an H100
# before its first tensor, and NCCL's buffers about as much on each rank of a group.
_CUDA_CONTEXT_BYTES = 600 << 20
_NCCL_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTarget:
    """One rank's device before the engine starts. `find_target` makes it."""

    device: torch.device
    """cpu, or cuda of whatever GPU."""
    dtype: torch.dtype
    packing: Packing
    keeps_quantized: bool
    """Matrices that come quantised stay so; see `ops.keeps_quantized`."""
    available_bytes: int
    """Free on the GPU, or on the machine whose ranks share it."""
    total_bytes: int
    """Of the GPU; on CPU the same as `available_bytes`."""
    host_bytes: int | None
    """Free for the host tiers of all ranks; None: unknown, as is the GPU's host."""

    @property
    def shares_memory(self) -> bool:
        """Whether all ranks of a group live off the same memory."""
        return self.device.type == "cpu"

    def free_bytes(self, size: int) -> int:
        """Return what weights, steps and KV of a rank in a group of `size` may take together.

        On CPU that is what all ranks may take.
        """
        is_nccl_there = self.device.type == "cuda" and size > 1
        return self.available_bytes - (_NCCL_BYTES if is_nccl_there else 0)


def find_target(
    config: EngineConfig, model: ModelConfig, gpu_bytes: int | None = None
) -> MemoryTarget:
    """Return the target of these settings on this machine, or on a GPU that is not here.

    Args:
        config: its device, dtype, quantization, kv_cache_dtype and deterministic count.
        model: whose weights are planned.
        gpu_bytes: memory of the GPU that is not here; None: plan for this machine.

    Raises InvalidConfig where the start would.
    """
    host_bytes = available_host_bytes()
    if gpu_bytes is None:
        device = choose_device(config)
        free, total = host_bytes, host_bytes
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
        return _complete(config, model, device, free, total, host_bytes)
    if config.device == "cpu":
        raise InvalidConfig(
            "The memory of a GPU is given, and the device is cpu.", "Leave one of them out."
        )
    free = gpu_bytes - _CUDA_CONTEXT_BYTES
    return _complete(config, model, torch.device("cuda"), free, gpu_bytes, None)


def _complete(
    config: EngineConfig,
    model: ModelConfig,
    device: torch.device,
    free: int,
    total: int,
    host_bytes: int | None,
) -> MemoryTarget:
    dtype = choose_dtype(config, model, device)
    check_deterministic(config, model, device, dtype)
    # A GPU that is not here has Triton beside it, which comes with torch for CUDA.
    is_elsewhere = host_bytes is None
    check_kv_cache_dtype(config, device, is_elsewhere=is_elsewhere)
    return MemoryTarget(
        device=device,
        dtype=dtype,
        packing=choose_packing(config, model, device, dtype, is_elsewhere=is_elsewhere),
        keeps_quantized=is_elsewhere or ops.keeps_quantized(device),
        available_bytes=free,
        total_bytes=total,
        host_bytes=host_bytes,
    )
