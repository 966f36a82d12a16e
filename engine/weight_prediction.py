"""Predict the bytes of a rank's weights from the model's shape and how its checkpoint is kept.

Plain arithmetic on `ModelConfig`, as in engine/memory_prediction.py, over the matrices that
engine/models/decoder_weights.py makes; tests/engine/test_weight_prediction.py compares the two.
"""

from dataclasses import replace

import torch

from engine.model_config import ModelConfig
from engine.models.decoder_weights import local_heads
from engine.quantization_config import (
    HEAD,
    AwqScheme,
    Fp8Scheme,
    GptqScheme,
    PackedScheme,
    Scheme,
)
from engine.quantized_checkpoint import cut_groups, cuts_groups
from engine.tensor_content import scale_dtype
from kernels.weight_sizes import GroupFormat, WeightFormat, gated_bytes, linear_bytes, norm_bytes
from kernels.weights import Packing


def weight_bytes(
    model: ModelConfig, size: int, dtype: torch.dtype, packing: Packing, keeps_quantized: bool
) -> int:
    """Return the bytes of rank 0's weights, which has the most, in a group of `size`.

    That is every matrix, bias and norm in the form it is kept in. Tensors count as stored in the
    dtype that config.json names, scales of 4-bit integers in the one that their format has. Where
    inputs have an order of their own (desc_act), query, key and value count as having the same,
    and so do gate and up: they are quantised by the same inputs.

    Args:
        model: its checkpoint may be quantised.
        size: ranks that share it.
        dtype: what is computed in.
        packing: how matrices are kept that are not quantised.
        keeps_quantized: those that are stay so; else they are dequantised at load.
    """
    formats = _Formats(model, dtype, packing, keeps_quantized)
    vocab_share = -(-model.vocab_size // size)
    embedding = vocab_share * model.hidden_size * model.dtype.itemsize
    form = formats.of_head
    is_shared = model.tie_embeddings and form.keeps_what_is_stored
    head = 0 if is_shared else linear_bytes(vocab_share, model.hidden_size, False, form)
    layers = sum(_layer_bytes(model, size, dtype, i, formats) for i in range(model.num_layers))
    return embedding + head + norm_bytes(1, model.hidden_size, dtype) + layers


def check_groups(model: ModelConfig, size: int) -> None:
    """Raise InvalidConfig where ranks would cut the groups of a checkpoint that stays quantised."""
    quantization = model.quantization
    if quantization is None or size == 1:
        return
    shares = {
        "self_attn.o_proj": model.num_heads * model.head_dim // size,
        "mlp.down_proj": model.intermediate_size // size,
    }
    for name, num_inputs in shares.items():
        layers = (f"model.layers.{i}.{name}" for i in range(model.num_layers))
        is_covered = any(map(quantization.covers, layers))
        if is_covered and cuts_groups(quantization.scheme, num_inputs):
            raise cut_groups(name, num_inputs, size)


class _Formats:
    """Knows in which form each matrix is kept."""

    def __init__(
        self, model: ModelConfig, dtype: torch.dtype, packing: Packing, keeps_quantized: bool
    ) -> None:
        self._model = model
        self._plain = WeightFormat.of(model.dtype, dtype, packing)
        self._keeps_quantized = keeps_quantized

    def of(self, *names: str) -> WeightFormat:
        """Return the form of what is made of the weights of some linear layers."""
        quantization, plain = self._model.quantization, self._plain
        covered = [quantization is not None and quantization.covers(name) for name in names]
        if quantization is None or not any(covered):
            return plain
        if self._keeps_quantized and all(covered):
            packing, groups = _kept_as(quantization.scheme, self._model.dtype)
            return replace(plain, packing=packing, groups=groups)
        # What is joined to others that are not quantised is in the wider dtype of the two.
        stored = plain.dtype
        if not all(covered):
            stored = torch.promote_types(plain.stored, stored)
        return replace(plain, stored=stored)

    @property
    def of_head(self) -> WeightFormat:
        """Return the form of the output matrix; float8 made at load spares it."""
        form = self._plain if self._model.tie_embeddings else self.of(HEAD)
        is_spared = self._plain.packing is Packing.FP8
        return replace(form, packing=Packing.NONE) if is_spared else form


def _layer_bytes(
    model: ModelConfig, size: int, dtype: torch.dtype, i: int, formats: _Formats
) -> int:
    hidden, ffn, dim = model.hidden_size, model.intermediate_size // size, model.head_dim
    num_kv_heads, group_size = local_heads(model, size)
    attended = num_kv_heads * group_size * dim
    attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
    qkv = formats.of(*(f"{attention}.{part}_proj" for part in "qkv"))
    output = formats.of(f"{attention}.o_proj")
    gate_up = formats.of(f"{mlp}.gate_proj", f"{mlp}.up_proj")
    down = formats.of(f"{mlp}.down_proj")
    return (
        2 * norm_bytes(1, hidden, dtype)
        + (norm_bytes(group_size + 1, dim, dtype) if model.qk_norm else 0)
        + linear_bytes(attended + 2 * num_kv_heads * dim, hidden, model.qkv_bias, qkv)
        + linear_bytes(hidden, attended, model.output_bias, output)
        + gated_bytes(ffn, hidden, model.mlp_bias, gate_up)
        + linear_bytes(hidden, ffn, model.mlp_bias, down)
    )


def _kept_as(scheme: Scheme, dtype: torch.dtype) -> tuple[Packing, GroupFormat]:
    """Return how its matrices are packed and scaled; `dtype`: of the checkpoint."""
    scales = scale_dtype(scheme, dtype)
    match scheme:
        case AwqScheme(size):
            return Packing.INT4, GroupFormat(size, scales, is_ordered=False)
        case GptqScheme(size, has_group_index):
            is_ordered = has_group_index and size is not None
            return Packing.INT4, GroupFormat(size, scales, is_ordered)
        case PackedScheme(size, has_group_index):
            return Packing.INT4, GroupFormat(size, scales, has_group_index)
        case Fp8Scheme(block_columns=size):
            return Packing.FP8, GroupFormat(size, scales, is_ordered=False)
