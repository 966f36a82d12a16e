"""Rotation factors of every position, computed once."""

import math

import torch
from torch import Tensor

from engine.rope_config import RopeConfig


def rotation_table(
    rope: RopeConfig, head_dim: int, num_positions: int, device: torch.device
) -> Tensor:
    """Return the factors [num_positions, head_dim / 2] complex64 for `ops.rotate_and_store`.

    Position p turns pair i by p * frequency[i]; the angle is a float32 product, as in the
    reference implementations, so that long positions round alike.
    """
    frequencies = rotation_frequencies(rope, head_dim)
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)
    magnitude = torch.full_like(angles, rope.attention_factor)
    return torch.polar(magnitude, angles).to(device)


def rotation_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Return the angle in radians by which each pair turns per position: [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.rope_type == "linear":
        return frequencies / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(rope, frequencies)
    if rope.rope_type == "yarn":
        return _yarn(rope, frequencies, head_dim)
    return frequencies


def _llama3(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Slow pairs are interpolated, fast ones kept, those between blended by wavelength.

    "Slow" and "fast" count turns over the original context: below low_freq_factor, above
    high_freq_factor (Llama 3.1 reference code).
    """
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return _blend(frequencies / rope.factor, frequencies, kept)


def _yarn(rope: RopeConfig, frequencies: Tensor, head_dim: int) -> Tensor:
    """Blend by pair index between the pairs that make beta_fast and beta_slow turns (YaRN 3.2)."""

    def pair_that_turns(num_turns: float) -> float:
        wavelengths = rope.original_max_position / (num_turns * 2 * math.pi)
        return head_dim * math.log(wavelengths) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high != low else 0.001  # no division by zero; the step stays a step
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    return _blend(frequencies / rope.factor, frequencies, 1 - (pairs - low) / span)


def _blend(interpolated: Tensor, kept: Tensor, share_kept: Tensor) -> Tensor:
    share = share_kept.clamp(0, 1)
    return interpolated * (1 - share) + kept * share
