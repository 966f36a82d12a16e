"""Chooses tokens on the device where their logits are."""

from torch import Tensor

from kernels import gpu_library, sampling_reference
from kernels.sampling_rows import DrawnTokens, DrawParams, SeenTokens


def sample(logits: Tensor, params: DrawParams, seen: SeenTokens | None = None) -> DrawnTokens:
    """Choose the next token of every row; what is meant is in kernels/sampling_reference.py.

    Args:
        logits: [num_rows, vocab_size] in any float dtype, rows of any stride; left as they are.
        params: how each row is drawn.
        seen: what was seen before and its penalties; None: there are none.
    """
    gpu = gpu_library.gpu_operations() if logits.device.type != "cpu" else None
    if gpu is None:
        return sampling_reference.sample(logits, params, seen=seen)
    drawn: DrawnTokens = gpu.sample(logits, params, seen=seen)
    return drawn
