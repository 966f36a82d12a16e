"""Every operation in plain torch, on any device: the oracle of the fast paths.

Same names and signatures as `kernels.ops`; shapes and dtypes are documented there. GPUs run these
where triton is not installed. All sums, norms and softmaxes are taken in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor

from kernels.attention_variant import PLAIN, AttentionVariant, cache_scales
from kernels.layout import AttentionGeometry, StepLayout
from kernels.weights import LinearWeight, NormWeight, Packing


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """Return x @ weight.T + bias."""
    assert weight.packing is Packing.NONE, "a packed weight is for the CPU path alone"
    return F.linear(x, weight.weight, weight.bias)


def rms_norm(x: Tensor, norm: NormWeight) -> Tensor:
    """Return x / sqrt(mean(x * x) + eps) * weight."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    return normed.to(x.dtype) * norm.weight


def rms_norm_(x: Tensor, norm: NormWeight) -> Tensor:
    """Norm `x` in place."""
    return x.copy_(rms_norm(x, norm))


def add_rms_norm(x: Tensor, residual: Tensor, norm: NormWeight) -> Tensor:
    """Add `x` to `residual` in place and return the norm of the sum."""
    return rms_norm(residual.add_(x), norm)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return silu(left half) * right half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotary_(heads: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of the last dimension in place."""
    even, odd = heads.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation.real, rotation.imag
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return heads.copy_(rotated.flatten(-2))


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The layout of a step on the device."""

    geometry: AttentionGeometry
    layout: StepLayout
    block_tables: Tensor
    """[num_seqs, max_blocks] int64"""
    slot_mapping: Tensor
    """[num_tokens] int64"""
    scales: tuple[Tensor, Tensor] | None = None
    """Of keys and values in float8, see `AttentionVariant`"""


class ReferencePlanner:
    """Brings the layout of each step to the device."""

    def __init__(self, geometry: AttentionGeometry, device: torch.device) -> None:
        self._geometry = geometry
        self._device = device
        self._scales = cache_scales(geometry.is_float8, device)

    def plan(self, layout: StepLayout) -> ReferencePlan:
        """Plan one step."""
        block_tables = torch.from_numpy(layout.block_tables).to(self._device, torch.int64)
        slot_mapping = torch.from_numpy(layout.slot_mapping).to(self._device, torch.int64)
        return ReferencePlan(self._geometry, layout, block_tables, slot_mapping, self._scales)


def store_kv(
    key_value: Tensor, kv_cache: Tensor, plan: ReferencePlan, variant: AttentionVariant = PLAIN
) -> None:
    """Write each token's key and value to its slot."""
    block_ids = plan.slot_mapping // plan.geometry.block_size
    offsets = plan.slot_mapping % plan.geometry.block_size
    for i in (0, 1):
        stored = key_value[:, :, i]
        if variant.scales is not None:
            largest = torch.finfo(kv_cache.dtype).max
            stored = (stored.float() / variant.scales[i]).clamp(-largest, largest)
        _indexable(kv_cache)[i][block_ids, :, offsets] = _indexable(stored.to(kv_cache.dtype))


def paged_attention(
    query: Tensor, kv_cache: Tensor, plan: ReferencePlan, variant: AttentionVariant
) -> Tensor:
    """Attend sequence by sequence over gathered keys and values."""
    bounds: Sequence[int] = plan.layout.query_start_loc.tolist()
    seq_lens: Sequence[int] = plan.layout.seq_lens.tolist()
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for i, seq_len in enumerate(seq_lens):
        first, last = bounds[i], bounds[i + 1]
        num_blocks = -(-seq_len // plan.geometry.block_size)
        blocks = _indexable(kv_cache)[:, plan.block_tables[i, :num_blocks]]
        # [2, num_kv_heads, seq_len, head_dim]; slots past the end may hold anything, even NaN.
        pair = blocks.transpose(1, 2).flatten(2, 3)[:, :, :seq_len]
        key, value = pair.view(kv_cache.dtype).float()
        if variant.scales is not None:
            key, value = key * variant.scales[0], value * variant.scales[1]
        scores = torch.einsum("thgd,hld->hgtl", query[first:last].float(), key)
        scores = scores.mul_(plan.geometry.scale)
        if variant.softcap is not None:
            scores = scores.div_(variant.softcap).tanh_().mul_(variant.softcap)
        hidden = ~visible(last - first, seq_len, variant.window, query.device)
        weights = _softmax(scores.masked_fill_(hidden, -torch.inf), variant.sinks)
        attended = torch.einsum("hgtl,hld->thgd", weights, value)
        output[first:last] = attended.to(query.dtype)
    return output.flatten(1)


def _indexable(x: Tensor) -> Tensor:
    """Return `x`, which torch cannot index in float8, or its bytes."""
    return x.view(torch.uint8) if x.element_size() == 1 else x


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Return the softmax of scores [h, g, t, l], each row with its head's sink [h, g] beside it."""
    if sinks is None:
        return scores.softmax(-1)
    beside = sinks[:, :, None, None].expand(*scores.shape[:3], 1)
    return torch.cat((scores, beside), dim=-1).softmax(-1)[..., :-1]


def visible(num_queries: int, seq_len: int, window: int | None, device: torch.device) -> Tensor:
    """Tell which keys each of a sequence's last `num_queries` positions may see.

    Returns [num_queries, seq_len] bool: key j for position i when i - window < j <= i.
    """
    positions = torch.arange(seq_len - num_queries, seq_len, device=device)[:, None]
    keys = torch.arange(seq_len, device=device)[None, :]
    mask = keys <= positions
    if window is not None:
        mask &= keys > positions - window
    return mask
