"""How positions turn into rotation frequencies, as a checkpoint's config.json tells it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidModel

_KNOWN_TYPES = ("default", "linear", "llama3", "yarn")
_DEFAULT_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding and the scaling that stretches it over a longer context."""

    rope_type: str = "default"
    """default, linear, llama3 or yarn; the fields below belong to some of them."""
    theta: float = _DEFAULT_THETA
    factor: float = 1.0
    original_max_position: int = 0
    """Context the model was trained for before scaling (llama3, yarn)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Round yarn's band of blended frequencies outwards to whole dimensions."""
    attention_factor: float = 1.0
    """Multiplies cosines and sines (yarn)."""


def parse_rope(config: Mapping[str, Any], max_position: int) -> RopeConfig:
    """Read the rope settings of a config.json, in the form of transformers 5 or before.

    Transformers 5 writes everything into `rope_parameters`; before it, `rope_theta` stood at the
    top and the rest in `rope_scaling`. Raises InvalidModel for what we cannot compute rightly.
    """
    params = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope_type = params.get("rope_type") or params.get("type") or "default"
    if rope_type not in _KNOWN_TYPES:
        raise InvalidModel(
            f"The model's rope scaling is {rope_type!r}, which is not supported.",
            f"Use a model with one of {', '.join(_KNOWN_TYPES)}.",
        )
    partial = params.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise InvalidModel(
            f"The model rotates {partial} of each head (partial_rotary_factor).",
            "Only models that rotate whole heads are supported.",
        )
    theta = params.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA
    if rope_type == "default":
        return RopeConfig(theta=float(theta))
    factor = _number(params, "factor", rope_type)
    if rope_type == "linear":
        return RopeConfig(rope_type="linear", theta=float(theta), factor=factor)
    original = (
        config.get("original_max_position_embeddings")
        or params.get("original_max_position_embeddings")
        or max_position
    )
    if rope_type == "llama3":
        return RopeConfig(
            rope_type="llama3",
            theta=float(theta),
            factor=factor,
            original_max_position=int(original),
            low_freq_factor=_number(params, "low_freq_factor", rope_type),
            high_freq_factor=_number(params, "high_freq_factor", rope_type),
        )
    return RopeConfig(
        rope_type="yarn",
        theta=float(theta),
        factor=factor,
        original_max_position=int(original),
        beta_fast=float(params.get("beta_fast") or 32),
        beta_slow=float(params.get("beta_slow") or 1),
        truncate=bool(params.get("truncate", True)),
        attention_factor=_yarn_attention_factor(params, factor),
    )


def _yarn_attention_factor(params: Mapping[str, Any], factor: float) -> float:
    """Temperature of the softmax, folded into cosines and sines (YaRN, section 3.4)."""
    if params.get("attention_factor") is not None:
        return float(params["attention_factor"])

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, mscale_all_dim = params.get("mscale"), params.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return temperature(float(mscale)) / temperature(float(mscale_all_dim))
    return temperature(1.0)


def _number(params: Mapping[str, Any], name: str, rope_type: str) -> float:
    value = params.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise InvalidModel(
            f"The model's {rope_type} rope scaling has no usable {name!r} (found {value!r}).",
            "Repair rope_parameters (or rope_scaling) in the model's config.json.",
        )
    return float(value)
