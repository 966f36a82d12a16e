"""The decoder of every supported architecture: the order of its operations."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from engine.attention import SelfAttention
from engine.feed_forward import FeedForward
from engine.vocabulary import VocabParallelEmbedding, VocabParallelHead
from kernels import ops
from kernels.ops import AttentionPlan
from kernels.weights import NormWeight


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Two halves, each followed by the sum over ranks."""

    attention: SelfAttention
    feed_forward: FeedForward


@dataclass(frozen=True, slots=True)
class Decoder:
    """One rank's share of a model."""

    embedding: VocabParallelEmbedding
    layers: list[DecoderLayer]
    final_norm: NormWeight
    head: VocabParallelHead

    @property
    def num_bytes(self) -> int:
        """Memory of all weights."""
        tensors = [self.embedding.weight, *self.final_norm.tensors, *self.head.weight.tensors]
        for layer in self.layers:
            tensors += layer.attention.weights.tensors
            tensors += layer.feed_forward.weights.tensors
        # Not `nbytes`, which packed tensors do not have; a tied head may be the embedding itself.
        return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())

    def forward(
        self,
        token_ids: Tensor,
        rotation: Tensor,
        kv_caches: Iterable[Tensor],
        plan: AttentionPlan,
        logits_rows: Tensor | None,
    ) -> Tensor | None:
        """Run the tokens of one step.

        token_ids    [tokens] int32 or int64
        rotation     [tokens, head_dim / 2] complex64, the rotation of each token's position
        kv_caches    one for each layer, taken when its turn comes; they get the tokens' keys and
                     values
        logits_rows  [rows] int64: tokens whose next token is wanted; None: all
        Returns logits [rows, vocab] on rank 0; None elsewhere and when no row is wanted.
        """
        residual = self.embedding(token_ids)
        x = None
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            # Once the last layer's KV is stored, only wanted tokens matter.
            rows = logits_rows if layer is self.layers[-1] else None
            x = layer.attention(x, residual, rotation, kv_cache, plan, rows)
            if rows is not None:
                if not len(rows):
                    return None
                residual = residual[rows]
            x = layer.feed_forward(x, residual)
        assert x is not None
        return self.head(ops.add_rms_norm(x, residual, self.final_norm))
