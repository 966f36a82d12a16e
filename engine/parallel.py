"""The ranks of one tensor-parallel group and how they exchange tensors.

Knows torch.distributed; knows nothing of models. A group of one never touches it.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

# A rank that dies closes its sockets, which wakes its peers at once; these bound only what a
# living peer may take. Followers wait in the control group for as long as the engine is idle.
_ACTIVATION_TIMEOUT = timedelta(minutes=10)
_CONTROL_TIMEOUT = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """One rank's view of its group."""

    rank: int
    size: int
    activations: dist.ProcessGroup | None = None
    """NCCL on CUDA, gloo on CPU; None in a group of one."""
    control: dist.ProcessGroup | None = None
    """gloo: step metadata and small agreements, on the host."""

    @classmethod
    def single(cls) -> "TensorParallel":
        """Return a group of one."""
        return cls(rank=0, size=1)

    @classmethod
    def join(cls, rank: int, size: int, init_method: str, device: torch.device) -> "TensorParallel":
        """Meet the other ranks; blocks until all `size` have come.

        Args:
            rank: 0 to size - 1, each taken once.
            size: ranks in the group.
            init_method: the meeting point, "tcp://host:port" or "file:///path", same for all.
            device: where activations live; select the CUDA device before.
        """
        if size == 1:
            return cls.single()
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl",
            init_method=init_method,
            rank=rank,
            world_size=size,
            timeout=_ACTIVATION_TIMEOUT,
            # Ties NCCL to the device now; otherwise it guesses at its first collective.
            device_id=device if device.type == "cuda" else None,
        )
        control = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)
        return cls(rank, size, dist.group.WORLD, cast("dist.ProcessGroup", control))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which schedules and samples."""
        return self.rank == 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum `x` over the ranks, in place; return it."""
        if self.size > 1:
            dist.all_reduce(x, group=self.activations)
        return x

    def gather_to_first(self, x: Tensor) -> Tensor | None:
        """Join each rank's [rows, columns] along the columns; None on every rank but 0."""
        if self.size == 1:
            return x
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.is_first else None
        dist.gather(x, parts, dst=0, group=self.activations)
        return None if parts is None else torch.cat(parts, dim=-1)

    def share(self, x: Tensor) -> Tensor:
        """Overwrite `x`, where activations live, with rank 0's; return it."""
        if self.size > 1:
            dist.broadcast(x, src=0, group=self.activations)
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """Overwrite `x`, a host tensor, with rank 0's, over the control group; return it."""
        if self.size > 1:
            dist.broadcast(x, src=0, group=self.control)
        return x

    def minimum(self, value: int) -> int:
        """Return the least value of all ranks."""
        if self.size == 1:
            return value
        least = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self.control)
        return int(least)

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            # What the first rank sends last, others may not have read yet.
            dist.barrier(group=self.control)
            dist.destroy_process_group()
