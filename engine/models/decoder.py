"""The decoder of every supported architecture: the order of its operations."""

from dataclasses import dataclass

from torch import Tensor

from engine.attention import Attention
from engine.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    VocabParallelHead,
)
from kernels import ops
from kernels.ops import AttentionPlan
from kernels.weights import NormWeight


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Attention and feed-forward, each followed by the sum over ranks."""

    input_norm: NormWeight
    attention: Attention
    attention_output: RowParallelLinear
    post_attention_norm: NormWeight
    gate_up: ColumnParallelLinear
    down: RowParallelLinear


@dataclass(frozen=True, slots=True)
class Decoder:
    """One rank's share of a model."""

    embedding: VocabParallelEmbedding
    layers: list[DecoderLayer]
    final_norm: NormWeight
    head: VocabParallelHead

    @property
    def num_bytes(self) -> int:
        """Memory of the matrices; norms are too small to count."""
        tensors = [self.embedding.weight, self.head.weight.weight]
        for layer in self.layers:
            linears = (layer.attention.qkv, layer.attention_output, layer.gate_up, layer.down)
            tensors += [linear.weight.weight for linear in linears]
        # Not `nbytes`, which packed tensors do not have; a tied head may be the embedding itself.
        return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())

    def forward(
        self,
        token_ids: Tensor,
        rotation: Tensor,
        kv_caches: list[Tensor],
        plan: AttentionPlan,
        logits_rows: Tensor | None,
    ) -> Tensor | None:
        """Run the tokens of one step.

        token_ids    [tokens] int32 or int64
        rotation     [tokens, head_dim / 2] complex64, the rotation of each token's position
        kv_caches    one for each layer; they get the tokens' keys and values
        logits_rows  [rows] int64: tokens whose next token is wanted; None: all
        Returns logits [rows, vocab] on rank 0; None elsewhere and when no row is wanted.
        """
        residual = self.embedding(token_ids)
        x = ops.rms_norm(residual, self.layers[0].input_norm)
        following_norms = [layer.input_norm for layer in self.layers[1:]] + [self.final_norm]
        for layer, kv_cache, next_norm in zip(self.layers, kv_caches, following_norms, strict=True):
            x = layer.attention(x, rotation, kv_cache, plan)
            if layer is self.layers[-1] and logits_rows is not None:
                # The last layer's KV is stored; from here on only wanted tokens matter.
                if not len(logits_rows):
                    return None
                x, residual = x[logits_rows], residual[logits_rows]
            x = layer.attention_output(x)
            x = ops.add_rms_norm(x, residual, layer.post_attention_norm)
            x = layer.down(ops.silu_and_mul(layer.gate_up(x)))
            x = ops.add_rms_norm(x, residual, next_norm)
        return self.head(x)
