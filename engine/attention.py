"""The first half of a layer on one rank: attention over this rank's KV heads."""

from dataclasses import dataclass

from torch import Tensor

from engine.parallel import TensorParallel
from kernels import ops
from kernels.ops import AttentionPlan
from kernels.weights import SelfAttentionWeights


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """A rank has all inputs of some heads, and their inputs of the output matrix.

    The first projection's outputs are ordered by KV head: its query heads, its key, its value. So
    the heads that rotate lie together, as do the key and value that are stored, and the queries
    of one KV head form one matrix; all are views.
    """

    weights: SelfAttentionWeights
    group: TensorParallel

    def __call__(
        self,
        x: Tensor | None,
        residual: Tensor,
        rotation: Tensor,
        kv_cache: Tensor,
        plan: AttentionPlan,
        rows: Tensor | None,
    ) -> Tensor:
        """Attend.

        x         [tokens, hidden]: what is to be added to `residual` first; None: nothing
        residual  [tokens, hidden], updated in place
        rotation  [tokens, head_dim / 2] complex64
        kv_cache  [2, num_blocks, num_kv_heads, block_size, head_dim]; gets the tokens' KV
        rows      [rows] int64: the tokens whose result is wanted; None: all
        Returns [rows, hidden], the same on every rank: what is to be added next.
        """
        y = ops.self_attention(x, residual, self.weights, rotation, kv_cache, plan, rows)
        return self.group.all_reduce(y) if len(y) else y
