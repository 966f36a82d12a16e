"""One layer's attention on one rank, from the normed input to just before the output matrix."""

from dataclasses import dataclass

from torch import Tensor

from engine.linear import ColumnParallelLinear
from kernels import ops
from kernels.ops import AttentionPlan
from kernels.weights import NormWeight


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention over this rank's KV heads.

    The projection's outputs are ordered by KV head: its query heads, its key, its value. So the
    heads that rotate lie together, as do the key and value that are stored, and the queries of
    one KV head form one matrix; all are views.
    """

    qkv: ColumnParallelLinear
    qk_norm: NormWeight | None
    """Gain [group_size + 1, head_dim]: each query head's, then the key's."""
    num_kv_heads: int
    group_size: int
    head_dim: int
    window: int | None

    def __call__(
        self, x: Tensor, rotation: Tensor, kv_cache: Tensor, plan: AttentionPlan
    ) -> Tensor:
        """Attend.

        x         [tokens, hidden]
        rotation  [tokens, head_dim / 2] complex64
        kv_cache  [2, num_blocks, num_kv_heads, block_size, head_dim]; gets the tokens' KV
        Returns [tokens, num_kv_heads * group_size * head_dim], good until the next layer's call.
        """
        size = self.group_size
        heads = self.qkv(x).view(-1, self.num_kv_heads, size + 2, self.head_dim)
        ops.rotate_and_store(heads, self.qk_norm, rotation, kv_cache, plan)
        return ops.paged_attention(heads.narrow(2, 0, size), kv_cache, plan, self.window)
