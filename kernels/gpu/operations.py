"""The Triton kernels under the names of `kernels.ops`, which has their shapes and dtypes."""

from kernels.gpu.attention_planner import GpuAttentionPlanner
from kernels.gpu.copy_blocks import block_planes, copy_blocks
from kernels.gpu.fp8_linear import fp8_linear
from kernels.gpu.gated_activation import silu_and_mul
from kernels.gpu.int4_linear import int4_linear
from kernels.gpu.paged_attention import paged_attention
from kernels.gpu.rms_norm import add_rms_norm, rms_norm
from kernels.gpu.rotate_and_store import rotate_and_store
from kernels.gpu.sample import sample

__all__ = [
    "GpuAttentionPlanner",
    "add_rms_norm",
    "block_planes",
    "copy_blocks",
    "fp8_linear",
    "int4_linear",
    "paged_attention",
    "rms_norm",
    "rotate_and_store",
    "sample",
    "silu_and_mul",
]
