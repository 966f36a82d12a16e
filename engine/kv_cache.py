"""How large the KV cache is and what fits into it; makes its tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.errors import InvalidConfig
from engine.host import available_host_bytes
from engine.model_config import ModelConfig
from engine.models.decoder_weights import local_heads
from kernels.huge_pages import prefer_huge_pages
from kernels.layout import AttentionGeometry

_MAX_HOST_CACHE_BYTES = 4 << 30
_HOST_SHARE = 0.5
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """A line of the plan, for people."""

    label: str
    num_bytes: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What one rank's memory is spent on. Ranks differ by little; blocks are the same on all."""

    weight_bytes: int
    activation_bytes: int
    """Most that a step needs beside weights and cache; measured on CUDA, predicted on CPU."""
    kv_cache_bytes: int
    block_bytes: int
    """Of one block, all layers."""
    num_blocks: int
    block_size: int
    max_model_len: int
    num_host_blocks: int = 0
    """Of the host tier, on each rank."""

    @property
    def num_cache_tokens(self) -> int:
        """Tokens whose KV the cache holds."""
        return self.num_blocks * self.block_size

    @property
    def max_concurrency(self) -> float:
        """Sequences of `max_model_len` tokens that fit at once."""
        return self.num_cache_tokens / self.max_model_len

    @property
    def rows(self) -> list[MemoryRow]:
        """What memory goes to, three rows or four."""
        blocks = (
            f"{self.num_blocks} blocks of {self.block_size} tokens, {self.num_cache_tokens} in all"
        )
        rows = [
            MemoryRow("weights", self.weight_bytes, ""),
            MemoryRow("step", self.activation_bytes, "at most"),
            MemoryRow("KV cache", self.kv_cache_bytes, blocks),
        ]
        if self.num_host_blocks:
            host_bytes = self.num_host_blocks * self.block_bytes
            rows.append(MemoryRow("host KV", host_bytes, f"{self.num_host_blocks} blocks"))
        return rows

    @property
    def summary(self) -> str:
        """What that is good for."""
        return (
            f"longest sequence {self.max_model_len} tokens; "
            f"{self.max_concurrency:.1f} of them fit at once"
        )

    def __str__(self) -> str:
        """Four lines for people, or five."""
        lines = [f"{r.label:<9} {r.num_bytes / GIB:6.2f} GiB  {r.note}".rstrip() for r in self.rows]
        return "\n".join([*lines, self.summary])


def attention_geometry(
    model: ModelConfig,
    size: int,
    dtype: torch.dtype,
    block_size: int,
    num_blocks: int,
    *,
    is_float8: bool = False,
) -> AttentionGeometry:
    """Return the shape of one rank's attention in a group of `size`; see `AttentionGeometry`."""
    num_kv_heads, group_size = local_heads(model, size)
    return AttentionGeometry(
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        group_size=group_size,
        head_dim=model.head_dim,
        dtype=dtype,
        is_float8=is_float8,
    )


def allocate_kv_caches(
    geometry: AttentionGeometry, num_layers: int, device: torch.device
) -> list[Tensor]:
    """Make each layer's cache; see `kernels.ops.rotate_and_store` for its shape.

    It is left as it comes: attention reads nothing that was not written, and on CPU memory that
    nobody has touched costs neither time nor pages.
    """
    shape, dtype = geometry.cache_shape, geometry.cache_dtype
    caches = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
    return [prefer_huge_pages(cache) for cache in caches]


def cache_budget(
    config: EngineConfig, size: int, device: torch.device, activation_bytes: int
) -> int:
    """Return the bytes that one rank's KV cache may take, once its weights are loaded."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        free = total = available_host_bytes()
    return cache_bytes(config, size, device, free, total, activation_bytes)


def cache_bytes(
    config: EngineConfig,
    size: int,
    device: torch.device,
    free: int,
    total: int,
    activation_bytes: int,
) -> int:
    """Return the same without asking the device. Negative where not even a step has room.

    Args:
        config: the settings.
        size: ranks in the group.
        device: cpu or cuda.
        free: bytes left beside the weights, of the GPU or of the machine that ranks share.
        total: bytes of the GPU.
        activation_bytes: what the largest step needs.
    """
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes // size
    if device.type == "cuda":
        return usable_bytes(config, device, free, total) - activation_bytes
    share = _HOST_SHARE * config.memory_utilization
    return min(_MAX_HOST_CACHE_BYTES, int(free * share)) // size


def usable_bytes(config: EngineConfig, device: torch.device, free: int, total: int) -> int:
    """Return the part of `free` that the settings allow to use; arguments as `cache_bytes`."""
    if device.type != "cuda" or config.kv_cache_bytes is not None:
        return free
    return free - int(total * (1 - config.memory_utilization))


def num_host_blocks_in(
    config: EngineConfig, size: int, block_bytes: int, available_bytes: int | None
) -> int:
    """Return the blocks of a rank's host tier.

    Args:
        config: the settings.
        size: ranks in the group.
        block_bytes: of a block, all layers.
        available_bytes: free host memory, for all ranks; None: not known, so it is enough.

    Raises InvalidConfig when memory is too small.
    """
    budget = config.host_kv_bytes // size
    if not budget:
        return 0
    if available_bytes is not None and budget > available_bytes // size:
        raise InvalidConfig(
            f"The host tier would take {budget / GIB:.1f} GiB of host memory on each rank, "
            f"and {available_bytes // size / GIB:.1f} GiB are free.",
            "Give it less.",
        )
    if budget < block_bytes:
        raise InvalidConfig(
            f"The host tier has {budget / MIB:.1f} MiB on a rank, "
            f"and one block takes {block_bytes / MIB:.1f} MiB.",
            "Give it more host memory, or none.",
        )
    return budget // block_bytes


def num_blocks_in(budget: int, block_bytes: int) -> int:
    """Return the blocks that fit. Raises InvalidConfig when not even one does."""
    if budget < block_bytes:
        raise InvalidConfig(
            f"The KV cache has room for {max(budget, 0) / MIB:.1f} MiB on a rank, "
            f"and one block takes {block_bytes / MIB:.1f} MiB.",
            "Give the KV cache more memory, use more ranks, or make blocks or model smaller.",
        )
    return budget // block_bytes


def choose_max_model_len(config: EngineConfig, model: ModelConfig, num_blocks: int) -> int:
    """Return the longest sequence to serve. Raises InvalidConfig when the wish cannot be met."""
    num_tokens = num_blocks * config.block_size
    wanted = config.max_model_len
    if wanted is None:
        return min(model.max_position, num_tokens)
    if wanted > model.max_position:
        raise InvalidConfig(
            f"max_model_len is {wanted}, but the model was made for {model.max_position} tokens.",
            f"Use a max_model_len of at most {model.max_position}.",
        )
    if wanted > num_tokens:
        raise InvalidConfig(
            f"max_model_len is {wanted}, but the KV cache holds {num_tokens} tokens.",
            f"Use a max_model_len of at most {num_tokens}, or give the KV cache more memory.",
        )
    return wanted
