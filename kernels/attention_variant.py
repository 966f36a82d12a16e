"""What some models' attention adds to the plain one."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionVariant:
    """Of one layer. The default is plain attention."""

    window: int | None = None
    """Positions seen, counted back from the query's own; None: all."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap), as in Gemma 2; None: they stay."""
    sinks: Tensor | None = None
    """[num_kv_heads, group_size] float32: a score of each head that draws weight and adds no
    value, as in gpt-oss; None: there is none."""
    scales: tuple[Tensor, Tensor] | None = None
    """Of keys and of values in a cache of float8_e4m3fn, float32 scalars on the device: what is
    stored times its scale is what it stands for. None: the cache has the model's dtype."""


PLAIN: Final = AttentionVariant()


def cache_scales(is_float8: bool, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Return the scales of a cache whose checkpoint has none; None where it needs none.

    One each: keys and values are far from the 448 at which float8 ends, and as it has 4 significant
    bits at any size down to 1/64, others did not bring a real model nearer to its exact cache.
    """
    if not is_float8:
        return None
    one = torch.ones((), device=device)
    return one, one
