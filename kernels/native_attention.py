"""Paged attention in float32 on CPU by our compiled kernels; see kernels/native/attention.h.

The cache has the shape that `kernels.ops` tells, but the keys of a block lie transposed in it:
[head_dim, block_size]. Nobody else looks into blocks; whole ones may be copied.
"""

from ctypes import byref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.layout import AttentionGeometry, IntArray, StepLayout
from kernels.native_library import native_library
from kernels.native_structs import Norm, Step
from kernels.weights import NormWeight
from kernels.workspace import Workspace


@dataclass(frozen=True, slots=True)
class NativePlan:
    """The layout of a step, where the kernels can read it."""

    step: Step
    layout: tuple[Tensor, ...]
    """What `step` points to."""
    output: Tensor
    """[num_tokens, h * g * head_dim], overwritten by each layer"""


class NativePlanner:
    """Plans the steps of one rank. A plan is good until the next one is made."""

    def __init__(self, geometry: AttentionGeometry) -> None:
        self._geometry = geometry
        self._workspace = Workspace(torch.device("cpu"))

    def plan(self, layout: StepLayout) -> NativePlan:
        """Plan one step."""
        geometry = self._geometry
        num_heads = geometry.num_kv_heads * geometry.group_size
        shape = (layout.num_tokens, num_heads * geometry.head_dim)
        tensors = (
            _to_tensor(layout.query_start_loc),
            _to_tensor(layout.seq_lens),
            _to_tensor(layout.block_tables),
            _to_tensor(layout.slot_mapping),
        )
        output = self._workspace.take("output", shape, geometry.dtype)
        return NativePlan(Step.of(geometry, *tensors), tensors, output)


def rotate_and_store(
    heads: Tensor, norm: NormWeight | None, rotation: Tensor, kv_cache: Tensor, plan: NativePlan
) -> None:
    """Norm and rotate queries and keys in place, then write keys and values to their slots."""
    native_library().rotate_and_store(
        heads.data_ptr(),
        byref(Norm.of(norm)),
        rotation.data_ptr(),
        kv_cache.data_ptr(),
        byref(plan.step),
    )


def paged_attention(
    query: Tensor, kv_cache: Tensor, plan: NativePlan, window: int | None
) -> Tensor:
    """Attend; the result is overwritten by the next call with the same plan.

    A query's result depends on its own sequence alone, and not on how that came to be computed.
    """
    _, num_kv_heads, size, head_dim = query.shape
    head_stride = (size + 2) * head_dim
    assert query.stride() == (num_kv_heads * head_stride, head_stride, head_dim, 1)
    native_library().paged_attention(
        query.data_ptr(),
        kv_cache.data_ptr(),
        byref(plan.step),
        window or 0,
        plan.output.data_ptr(),
    )
    return plan.output


def _to_tensor(array: IntArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
