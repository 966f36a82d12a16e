"""Small random models of every architecture, written as GGUF files the way llama.cpp does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

pytest.importorskip("gguf", reason="gguf is not installed here")

import gguf
from gguf import GGMLQuantizationType as QuantType
from gguf import TokenType

SIZES = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}
CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
SPECIAL_TOKENS = ["<|start|>", "<|im_end|>", "<|eot_id|>", "<tool>"]
CHAT_TEMPLATE = "{% for m in messages %}<|start|>{{ m.content }}<|im_end|>{% endfor %}"

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def random_model(kind: str, **changes: Any) -> PreTrainedModel:
    """Return a model with random weights, norms and biases included."""
    torch.manual_seed(7)
    config = CONFIGS[kind](**{**SIZES, "tie_word_embeddings": False, **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def byte_tokens() -> list[str]:
    """Return the letters that byte-level BPE writes for the 256 bytes, in no special order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    quant_type: QuantType = QuantType.F32,
    *,
    extra: dict[str, Any] | None = None,
    extra_tensors: dict[str, NDArray[np.float32]] | None = None,
    pre: str = "gpt-2",
) -> Path:
    """Write a model and a byte-level tokenizer. Vectors stay float32, as in every GGUF file."""
    config = model.config
    kind = "llama" if config.model_type == "mistral" else config.model_type
    writer = gguf.GGUFWriter(path, kind)
    _write_sizes(writer, config, kind)
    _write_tokenizer(writer, config.vocab_size, pre)
    for key, value in (extra or {}).items():
        _write_value(writer, key, value)
    tensors = {**gguf_tensors(model, kind), **(extra_tensors or {})}
    for name, tensor in tensors.items():
        if tensor.ndim == 1 or quant_type == QuantType.F32:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, quant_type), raw_dtype=quant_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(model: PreTrainedModel, kind: str) -> dict[str, NDArray[np.float32]]:
    """Return the tensors under GGUF's names, q and k of "llama" in llama.cpp's order of rows."""
    config = model.config
    tensors = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = parameter.float().numpy()
        if kind == "llama" and "q_proj" in name:
            values = _interleave(values, config.num_attention_heads)
        if kind == "llama" and "k_proj" in name:
            values = _interleave(values, config.num_key_value_heads)
        tensors[_gguf_name(name)] = values
    return tensors


def llama3_divisors(config: PreTrainedConfig) -> NDArray[np.float32]:
    """Return the tensor rope_freqs.weight: frequencies without scaling over those with it."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    rope, head_dim = config.rope_parameters, config.head_dim
    plain = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2) / head_dim)
    divisors: NDArray[np.float32] = (plain / scaled).float().numpy()
    return divisors


def _interleave(values: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Put row i and row i + head_dim / 2 of every head next to each other."""
    heads = values.reshape(num_heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(np.stack([heads[:, 0], heads[:, 1]], axis=2).reshape(values.shape))


def _gguf_name(name: str) -> str:
    stem, _, ending = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[rest]}.{ending}"
    return f"{_NAMES[stem]}.{ending}"


def _write_sizes(writer: gguf.GGUFWriter, config: PreTrainedConfig, kind: str) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if kind == "llama":
        writer.add_rope_dimension_count(head_dim)


def _write_tokenizer(writer: gguf.GGUFWriter, vocab_size: int, pre: str) -> None:
    tokens = byte_tokens() + SPECIAL_TOKENS
    types = [TokenType.NORMAL] * 256 + [TokenType.CONTROL] * 3 + [TokenType.USER_DEFINED]
    num_merged = vocab_size - len(tokens)
    merges = [("Ġ", letter) for letter in byte_tokens()[:num_merged]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + [left + right for left, right in merges])
    writer.add_token_types(types + [TokenType.NORMAL] * num_merged)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template(CHAT_TEMPLATE)


def _write_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: dict[type, Any] = {
        str: writer.add_string,
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        list: writer.add_array,
    }
    kinds[type(value)](key, value)
