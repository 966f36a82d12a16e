"""Name the tensors of a GGUF file as Hugging Face does, and turn their rows into floats.

llama.cpp rotates pairs of neighbouring rows of q and k for the architecture "llama" and stores
them in that order; Hugging Face rotates row i with row i + head_dim / 2. `unpermute_rows` undoes
the reordering. Other architectures are stored as they are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from engine.errors import InvalidModel
from engine.gguf_reader import GgufFile, GgufTensor

# What gguf.quants can turn into floats.
SUPPORTED_TYPES = frozenset(
    GGMLQuantizationType[name]
    for name in (
        *("F32", "F16", "BF16"),
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
        *("TQ1_0", "TQ2_0", "MXFP4"),
    )
)
# Becomes rope_scaling of config.json.
CONFIG_TENSORS = frozenset({"rope_freqs.weight"})


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A tensor of the model folder and where its values come from."""

    name: str
    shape: tuple[int, ...]
    source: GgufTensor
    interleaved_heads: int
    """Heads whose rows llama.cpp reordered; 0: none."""


def tensor_sources(file: GgufFile, config: dict[str, Any]) -> list[TensorSource]:
    """Return all tensors of the model. Raises InvalidModel when one is missing, odd or too many."""
    expected = _expected(config, interleaved=file.metadata["general.architecture"] == "llama")
    missing = [name for name in expected if name not in file.tensors]
    if missing:
        raise _invalid(file, f"has no tensor {missing[0]}")
    sources = []
    for name, tensor in file.tensors.items():
        if name in CONFIG_TENSORS:
            continue
        if name not in expected:
            raise _invalid(file, f"has a tensor {name} that its architecture does not know")
        new_name, shape, heads = expected[name]
        if tensor.shape != shape:
            raise _invalid(file, f"has {name} of shape {list(tensor.shape)}, not {list(shape)}")
        if tensor.quant_type not in SUPPORTED_TYPES:
            names = sorted(quant_type.name for quant_type in SUPPORTED_TYPES)
            raise InvalidModel(
                f"'{file.path}' stores {name} as {tensor.quant_type.name}, which cannot be read.",
                f"Use a file with one of these types: {', '.join(names)}.",
            )
        sources.append(TensorSource(new_name, shape, tensor, heads))
    return sources


def read_rows(source: TensorSource, begin: int, end: int) -> NDArray[np.float32]:
    """Return rows of the tensor as float32 [end - begin, last dimension]; a vector is one row."""
    tensor, heads = source.source, source.interleaved_heads
    if heads and len(source.shape) > 1:
        rows = tensor.rows[unpermute_rows(source.shape[0], heads)[begin:end]]
    else:
        rows = tensor.rows[begin:end]
    values: NDArray[np.float32] = dequantize(rows, tensor.quant_type)
    if heads and len(source.shape) == 1:
        values = values[:, unpermute_rows(source.shape[0], heads)]
    return values.astype(np.float32, copy=False)


def unpermute_rows(num_rows: int, num_heads: int) -> NDArray[np.intp]:
    """Return, for every row in Hugging Face's order, its row in llama.cpp's order."""
    half = num_rows // num_heads // 2
    return np.arange(num_rows).reshape(num_heads, half, 2).swapaxes(1, 2).ravel()


def _expected(
    config: dict[str, Any], *, interleaved: bool
) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Return GGUF name -> Hugging Face name, shape, interleaved heads."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    expected: dict[str, tuple[str, tuple[int, ...], int]] = {
        "token_embd.weight": ("model.embed_tokens.weight", (vocab, hidden), 0),
        "output_norm.weight": ("model.norm.weight", (hidden,), 0),
    }
    if not config["tie_word_embeddings"]:
        expected["output.weight"] = ("lm_head.weight", (vocab, hidden), 0)
    layer = _expected_in_layer(config, interleaved=interleaved)
    for i in range(config["num_hidden_layers"]):
        for name, (new_name, shape, heads) in layer.items():
            expected[f"blk.{i}.{name}"] = (f"model.layers.{i}.{new_name}", shape, heads)
    return expected


def _expected_in_layer(
    config: dict[str, Any], *, interleaved: bool
) -> dict[str, tuple[str, tuple[int, ...], int]]:
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    head_dim = config["head_dim"]
    q_heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    q_size, kv_size = q_heads * head_dim, kv_heads * head_dim
    q_order, k_order = (q_heads, kv_heads) if interleaved else (0, 0)
    layer: dict[str, tuple[str, tuple[int, ...], int]] = {
        "attn_norm.weight": ("input_layernorm.weight", (hidden,), 0),
        "attn_q.weight": ("self_attn.q_proj.weight", (q_size, hidden), q_order),
        "attn_k.weight": ("self_attn.k_proj.weight", (kv_size, hidden), k_order),
        "attn_v.weight": ("self_attn.v_proj.weight", (kv_size, hidden), 0),
        "attn_output.weight": ("self_attn.o_proj.weight", (hidden, q_size), 0),
        "ffn_norm.weight": ("post_attention_layernorm.weight", (hidden,), 0),
        "ffn_gate.weight": ("mlp.gate_proj.weight", (intermediate, hidden), 0),
        "ffn_up.weight": ("mlp.up_proj.weight", (intermediate, hidden), 0),
        "ffn_down.weight": ("mlp.down_proj.weight", (hidden, intermediate), 0),
    }
    model_type = config["model_type"]
    if model_type == "qwen2" or config.get("attention_bias"):
        layer["attn_q.bias"] = ("self_attn.q_proj.bias", (q_size,), q_order)
        layer["attn_k.bias"] = ("self_attn.k_proj.bias", (kv_size,), k_order)
        layer["attn_v.bias"] = ("self_attn.v_proj.bias", (kv_size,), 0)
    if config.get("attention_bias"):
        layer["attn_output.bias"] = ("self_attn.o_proj.bias", (hidden,), 0)
    if model_type == "qwen3":
        layer["attn_q_norm.weight"] = ("self_attn.q_norm.weight", (head_dim,), 0)
        layer["attn_k_norm.weight"] = ("self_attn.k_norm.weight", (head_dim,), 0)
    return layer


def _invalid(file: GgufFile, what: str) -> InvalidModel:
    return InvalidModel(
        f"'{file.path}' {what}.",
        "Use another GGUF file of this model, or its folder of safetensors.",
    )
