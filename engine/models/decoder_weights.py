"""A checkpoint's tensors -> one rank's decoder: which slices, in which order, fused how."""

import torch
from torch import Tensor

from engine.attention import SelfAttention
from engine.feed_forward import FeedForward
from engine.model_config import ModelConfig
from engine.models.decoder import Decoder, DecoderLayer
from engine.models.decoder_tensors import EMBEDDING, FINAL_NORM, expected_tensors
from engine.parallel import TensorParallel
from engine.progress import Report
from engine.quantization_config import HEAD
from engine.quantized_checkpoint import cut_groups, read_matrix, unread_endings
from engine.vocabulary import VocabParallelEmbedding, VocabParallelHead
from engine.weights import WeightSource
from kernels import ops
from kernels.quantized_matrix import Matrix, QuantizedMatrix, concatenate, take_rows
from kernels.weights import (
    FeedForwardWeights,
    LinearWeight,
    NormWeight,
    Packing,
    SelfAttentionWeights,
)

# Old checkpoints store what follows from the config.
_DERIVED = ("rotary_emb.inv_freq",)


def load_decoder(
    checkpoint: WeightSource,
    model: ModelConfig,
    group: TensorParallel,
    device: torch.device,
    dtype: torch.dtype,
    packing: Packing,
    report: Report | None = None,
) -> Decoder:
    """Load this rank's share.

    Raises InvalidModel when the checkpoint is not such a model; InvalidConfig when so many ranks
    would cut the groups of a quantised one.

    Args:
        checkpoint: of any float dtype, or quantised as the model says.
        model: what the checkpoint should hold.
        group: whose rank this is.
        device: where the weights go.
        dtype: what is computed in; matrices may be kept in a smaller one, see `kernels.ops`.
        packing: how matrices are kept that are not quantised.
        report: told after each layer.
    """
    # A tied model may still carry its head, a copy of the embedding.
    ignored: tuple[str, ...] = (*_DERIVED, f"{HEAD}.weight") if model.tie_embeddings else _DERIVED
    if model.quantization is not None:
        ignored += unread_endings(model.quantization.scheme)
    checkpoint.check(dict(expected_tensors(model)), ignored)
    return _Loader(checkpoint, model, group, device, dtype, packing).load(report)


def local_heads(model: ModelConfig, size: int) -> tuple[int, int]:
    """Return a rank's KV heads and the query heads of each; beyond one a rank, KV is repeated."""
    num_kv_heads = max(model.num_kv_heads // size, 1)
    return num_kv_heads, model.num_heads // size // num_kv_heads


class _Loader:
    def __init__(
        self,
        checkpoint: WeightSource,
        model: ModelConfig,
        group: TensorParallel,
        device: torch.device,
        dtype: torch.dtype,
        packing: Packing,
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._group = group
        self._device = device
        self._dtype = dtype
        self._packing = packing
        self._num_kv_heads, self._group_size = local_heads(model, group.size)
        self._vocab_share = -(-model.vocab_size // group.size)

    def load(self, report: Report | None) -> Decoder:
        model = self._model
        embedding = self._pad_vocab(self._read(EMBEDDING, self._vocab_rows()))
        assert isinstance(embedding, Tensor)
        return Decoder(
            embedding=VocabParallelEmbedding(
                embedding, self._dtype, self._group.rank * len(embedding), self._group
            ),
            layers=self._layers(report),
            final_norm=self._norm(FINAL_NORM),
            head=VocabParallelHead(self._head(embedding), model.vocab_size, self._group),
        )

    def _layers(self, report: Report | None) -> list[DecoderLayer]:
        layers = []
        for i in range(self._model.num_layers):
            layers.append(self._layer(i))
            if report is not None:
                report("load weights", i + 1, self._model.num_layers)
        return layers

    def _layer(self, i: int) -> DecoderLayer:
        name = f"model.layers.{i}"
        return DecoderLayer(
            SelfAttention(self._self_attention(name, i), self._group),
            FeedForward(self._feed_forward(name), self._group),
        )

    def _self_attention(self, name: str, i: int) -> SelfAttentionWeights:
        model = self._model
        return ops.self_attention_weights(
            norm=self._norm(f"{name}.input_layernorm.weight"),
            qkv=self._qkv(f"{name}.self_attn"),
            qk_norm=self._qk_norm(f"{name}.self_attn") if model.qk_norm else None,
            output=self._row_parallel(
                f"{name}.self_attn.o_proj", model.num_heads * model.head_dim, model.output_bias
            ),
            window=model.sliding_windows[i],
        )

    def _feed_forward(self, name: str) -> FeedForwardWeights:
        model = self._model
        return ops.feed_forward_weights(
            norm=self._norm(f"{name}.post_attention_layernorm.weight"),
            gate_up=self._gate_up(f"{name}.mlp"),
            down=self._row_parallel(
                f"{name}.mlp.down_proj", model.intermediate_size, model.mlp_bias
            ),
        )

    def _read(self, name: str, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        return self._checkpoint.read(name, rows, columns).to(self._device)

    def _matrix(self, name: str, rows: slice, columns: slice, is_share: bool = False) -> Matrix:
        """Read a part of a linear layer's weight, all ends given.

        `is_share`: the inputs are this rank's alone.
        """
        quantization = self._model.quantization
        if quantization is None or not quantization.covers(name):
            return self._read(f"{name}.weight", rows, columns)
        matrix = read_matrix(self._read, name, quantization.scheme, rows, columns)
        if not ops.keeps_quantized(self._device):
            return matrix.dequantize().to(self._dtype)
        self._check_groups(name, matrix, is_share)
        return matrix

    def _linear(self, weight: Matrix, bias: Tensor | None) -> LinearWeight:
        return ops.linear_weight(weight, bias, self._dtype, self._packing)

    def _head(self, embedding: Tensor) -> LinearWeight:
        weight: Matrix = embedding
        if not self._model.tie_embeddings:
            inputs = slice(0, self._model.hidden_size)
            weight = self._pad_vocab(self._matrix(HEAD, self._vocab_rows(), inputs))
        # Float8 is too coarse for what picks the token; peers leave the head alone too.
        packing = Packing.NONE if self._packing is Packing.FP8 else self._packing
        return ops.linear_weight(weight, None, self._dtype, packing)

    def _share(self, size: int) -> slice:
        """Rows or columns of this rank, of `size` that divide evenly."""
        local = size // self._group.size
        return slice(self._group.rank * local, (self._group.rank + 1) * local)

    def _norm(self, name: str) -> NormWeight:
        return ops.norm_weight(self._read(name).to(self._dtype), self._model.rms_norm_eps)

    def _qk_norm(self, name: str) -> NormWeight:
        query = _interleave(self._read(f"{name}.q_norm.weight"), self._model.head_dim)
        key = _interleave(self._read(f"{name}.k_norm.weight"), self._model.head_dim)
        gain = torch.stack([*[query] * self._group_size, key])
        return ops.norm_weight(gain.to(self._dtype), self._model.rms_norm_eps)

    def _qkv(self, name: str) -> LinearWeight:
        """Order the outputs by KV head: its query heads, its key, its value (see SelfAttention)."""
        model, head_dim, num_kv_heads = self._model, self._model.head_dim, self._num_kv_heads
        queries = self._share(model.num_heads * head_dim)
        first = self._group.rank * model.num_kv_heads // self._group.size * head_dim
        keys = slice(first, first + num_kv_heads * head_dim)
        parts = {f"{name}.q_proj": queries, f"{name}.k_proj": keys, f"{name}.v_proj": keys}
        order = self._qkv_order()
        inputs = slice(0, model.hidden_size)
        weight = concatenate([self._matrix(part, rows, inputs) for part, rows in parts.items()])
        bias = None
        if model.qkv_bias:
            biases = [self._read(f"{part}.bias", rows) for part, rows in parts.items()]
            bias = torch.cat(biases)[order]
        return self._linear(take_rows(weight, order), bias)

    def _qkv_order(self) -> Tensor:
        """Return where each output comes from in this rank's queries, keys and values."""
        head_dim, num_kv_heads = self._model.head_dim, self._num_kv_heads
        num_keys = num_kv_heads * head_dim
        num_queries = num_keys * self._group_size
        rows = torch.arange(num_queries + 2 * num_keys, device=self._device)
        query, key, value = rows.tensor_split((num_queries, num_queries + num_keys))
        ordered = (_interleave(query, head_dim), _interleave(key, head_dim), value)
        parts = [part.view(num_kv_heads, -1) for part in ordered]
        return torch.cat(parts, dim=1).flatten()

    def _gate_up(self, name: str) -> LinearWeight:
        share = self._share(self._model.intermediate_size)
        inputs = slice(0, self._model.hidden_size)
        parts = (f"{name}.gate_proj", f"{name}.up_proj")
        weight = concatenate([self._matrix(part, share, inputs) for part in parts])
        bias = None
        if self._model.mlp_bias:
            bias = torch.cat([self._read(f"{part}.bias", share) for part in parts])
        return ops.gated_weight(weight, bias, self._dtype, self._packing)

    def _row_parallel(self, name: str, num_inputs: int, has_bias: bool) -> LinearWeight:
        """Take this rank's inputs. Rank 0 alone has the bias, so that the sum counts it once."""
        share = self._share(num_inputs)
        outputs = slice(0, self._model.hidden_size)
        weight = self._matrix(name, outputs, share, is_share=self._group.size > 1)
        bias = self._read(f"{name}.bias") if has_bias and self._group.is_first else None
        return self._linear(weight, bias)

    def _check_groups(self, name: str, matrix: QuantizedMatrix, is_share: bool) -> None:
        size, num_inputs = matrix.group_size, len(matrix.group_of_input)
        # A rank whose last group alone is cut must stop too, or it waits for the others.
        if size is None or (is_share and num_inputs % size):
            raise cut_groups(name, num_inputs, self._group.size)

    def _vocab_rows(self) -> slice:
        """Return this rank's rows of the vocabulary; the last one where none are left."""
        first = self._group.rank * self._vocab_share
        last = self._model.vocab_size
        return slice(min(first, last - 1), min(first + self._vocab_share, last))

    def _pad_vocab(self, rows: Matrix) -> Matrix:
        """Repeat the last row up to the share of every rank; nobody asks for these."""
        num_rows = len(rows if isinstance(rows, Tensor) else rows.values)
        if num_rows == self._vocab_share:
            return rows
        index = torch.arange(self._vocab_share, device=self._device)
        return take_rows(rows, index.clamp_max(num_rows - 1))


def _interleave(rows: Tensor, head_dim: int) -> Tensor:
    """Reorder each head's rows so that those that rotate together are neighbours.

    Checkpoints pair element i with i + head_dim / 2. Queries and keys move alike, so their
    products stay the same.
    """
    halves = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.transpose(1, 2).flatten(0, 2)
