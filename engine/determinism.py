"""Refuses to promise the same tokens every time where the computation cannot keep it.

Our compiled kernels sum each row on its own and in one order, whatever lies beside it, in the cache
or in earlier chunks. Libraries choose their order by the shape of the batch.
"""

import torch

from engine.config import EngineConfig
from engine.errors import InvalidConfig
from engine.model_config import ModelConfig
from kernels import native_library


def check_deterministic(
    config: EngineConfig, model: ModelConfig, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise InvalidConfig where `config.deterministic` is asked for and cannot be had."""
    if not config.deterministic:
        return
    if device.type != "cpu":
        raise InvalidConfig(
            f"Deterministic mode is not there on {device.type} yet.",
            "Use --device cpu, or drop it.",
        )
    widths = (
        model.head_dim,
        model.hidden_size,
        model.intermediate_size // config.tensor_parallel_size,
    )
    if not all(native_library.can_run(width, dtype) for width in widths):
        raise InvalidConfig(
            "Deterministic mode needs the compiled CPU kernels, and they do not run here: "
            f"dtype {str(dtype).removeprefix('torch.')}, widths {widths}.",
            "Use --dtype float32 and install PageRay on a machine with a C++ compiler, or drop it.",
        )
    if config.tensor_parallel_size > 2:
        # The sum of two is the same either way round; of more, its order follows the sizes.
        raise InvalidConfig(
            f"Deterministic mode sums over 2 ranks at most, not {config.tensor_parallel_size}.",
            "Use --tensor-parallel-size 1 or 2, or drop it.",
        )
