"""What some models' attention adds to the plain one."""

from dataclasses import dataclass
from typing import Final

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
