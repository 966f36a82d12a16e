"""Translate GGUF metadata into config.json and generation_config.json of a Hugging Face folder.

The keys are those of the ggml repository, docs/gguf.md.
"""

from typing import Any

import numpy as np
from gguf import TokenType
from gguf.quants import dequantize

from engine.errors import InvalidModel
from engine.gguf_reader import GgufFile, GgufTensor

# GGUF architecture -> architecture and model type in config.json.
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
# GGUF calls Mistral "llama"; only a sliding window tells them apart.
SLIDING_WINDOW_ARCHITECTURE = ("MistralForCausalLM", "mistral")

DEFAULT_ROPE_THETA = 10_000.0

# Frequencies of Llama 3 come as a tensor of divisors. All models published use these numbers
# (config.json of Llama 3.1, 3.2 and 3.3) with a factor of their own.
LLAMA3_LOW_FREQ_FACTOR = 1.0
LLAMA3_HIGH_FREQ_FACTOR = 4.0
LLAMA3_ORIGINAL_CONTEXT = 8192

# What llama.cpp takes where a SentencePiece file does not say.
SENTENCE_PIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}

# A GGUF file names one end token; config files of chat models name several. llama.cpp also
# recognises the others by their text.
END_TOKENS = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<｜end▁of▁sentence｜>",  # noqa: RUF001  the bars are wide ones
        "</s>",
    }
)


def model_config(file: GgufFile, dtype: str) -> dict[str, Any]:
    """Return config.json. Raises InvalidModel for an architecture we cannot serve."""
    metadata = file.metadata
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise InvalidModel(
            f"'{file.path}' has the GGUF architecture {kind!r}, which PageRay cannot serve.",
            f"Use a model of one of these: {', '.join(sorted(ARCHITECTURES))}.",
        )
    read = _Reader(file, kind)
    hidden_size = read.integer("embedding_length")
    num_heads = read.integer("attention.head_count")
    head_dim = read.integer("attention.key_length", hidden_size // num_heads)
    read.refuse_unless("attention.value_length", head_dim)
    read.refuse_unless("rope.dimension_count", head_dim)
    read.refuse_unless("expert_count", 0)
    architecture, model_type = ARCHITECTURES[kind]
    config: dict[str, Any] = {
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": read.integer("feed_forward_length"),
        "num_hidden_layers": read.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": read.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": read.integer("context_length"),
        "rms_norm_eps": read.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": read.number("rope.freq_base", DEFAULT_ROPE_THETA),
        "rope_scaling": _rope_scaling(file, read, head_dim),
        "vocab_size": read.vocab_size(),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": dtype,
        "bos_token_id": special_token_id(metadata, "bos"),
        "eos_token_id": special_token_id(metadata, "eos"),
    }
    if kind != "qwen2":  # which always has biases, and no such field
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    sliding_window = read.integer("attention.sliding_window", 0)
    if kind == "llama" and sliding_window:
        architecture, model_type = SLIDING_WINDOW_ARCHITECTURE
        config["sliding_window"] = sliding_window
    return {"architectures": [architecture], "model_type": model_type, **config}


def generation_config(file: GgufFile) -> dict[str, Any]:
    """Return generation_config.json: where generation ends."""
    metadata = file.metadata
    roles = (special_token_id(metadata, role) for role in ("eos", "eot", "eom"))
    ends = {token_id for token_id in roles if token_id is not None}
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    types = metadata.get("tokenizer.ggml.token_type", [])
    ends |= {
        token_id
        for token_id, (token, token_type) in enumerate(zip(tokens, types, strict=False))
        if token_type == TokenType.CONTROL and token in END_TOKENS
    }
    config = {
        "bos_token_id": special_token_id(metadata, "bos"),
        "eos_token_id": sorted(ends),
        "pad_token_id": special_token_id(metadata, "padding"),
    }
    return {name: value for name, value in config.items() if value not in (None, [])}


def special_token_id(metadata: dict[str, Any], role: str) -> int | None:
    """Return the id of the token in a role: bos, eos, eot, eom, unknown, padding."""
    default = None
    if metadata.get("tokenizer.ggml.model") == "llama":
        default = SENTENCE_PIECE_IDS.get(role)
    token_id = metadata.get(f"tokenizer.ggml.{role}_token_id", default)
    return token_id if isinstance(token_id, int) else None


class _Reader:
    """Typed look-ups of the keys of one architecture."""

    def __init__(self, file: GgufFile, kind: str) -> None:
        self._file = file
        self._kind = kind

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number that every layer shares."""
        name = f"{self._kind}.{key}"
        value = self._file.metadata.get(name, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.invalid(f"{name} is {value!r}, not one number")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a size or a count."""
        value = self.number(key, default)
        if not isinstance(value, int) or value < 0 or (value == 0 and default != 0):
            raise self.invalid(f"{self._kind}.{key} is {value!r}")
        return value

    def has(self, key: str) -> bool:
        """Tell whether the file says anything about a key."""
        return f"{self._kind}.{key}" in self._file.metadata

    def text(self, key: str, default: str) -> str:
        """Return a string."""
        return str(self._file.metadata.get(f"{self._kind}.{key}", default))

    def vocab_size(self) -> int:
        """Return the rows of the embedding, which may be more than the tokenizer's tokens."""
        embedding = self._file.tensors.get("token_embd.weight")
        if embedding is None:
            raise self.invalid("the tensor token_embd.weight is missing")
        return embedding.shape[0]

    def refuse_unless(self, key: str, expected: int) -> None:
        """Refuse variants of the architecture that the engine does not compute."""
        value = self.number(key, expected)
        if value != expected:
            raise self.invalid(f"{self._kind}.{key} is {value}, and only {expected} is supported")

    def invalid(self, what: str) -> InvalidModel:
        """Return the error to raise."""
        return InvalidModel(
            f"'{self._file.path}' cannot be served: {what}.",
            "Use another GGUF file of this model, or its folder of safetensors.",
        )


def _rope_scaling(file: GgufFile, read: _Reader, head_dim: int) -> dict[str, Any] | None:
    """Return rope_scaling of config.json, None when positions are not scaled."""
    divisors = file.tensors.get("rope_freqs.weight")
    if divisors is not None:
        return _llama3_scaling(divisors, read, head_dim)
    kind = read.text("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(read.number("rope.scaling.factor"))}
    if kind == "yarn":
        return _yarn_scaling(read)
    if kind != "none":
        raise read.invalid(f"rope scaling of type {kind!r} is not one of linear, yarn, llama3")
    # Files from 2023 give a linear factor without a type.
    factor = float(read.number("rope.scale_linear", 1.0))
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _yarn_scaling(read: _Reader) -> dict[str, Any]:
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": float(read.number("rope.scaling.factor")),
        "original_max_position_embeddings": read.integer("rope.scaling.original_context_length"),
    }
    if read.number("rope.scaling.yarn_log_multiplier", 0.0) != 0.0:
        raise read.invalid("rope scaling uses yarn_log_multiplier")
    optional = {
        "attention_factor": "yarn_attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    for name, key in optional.items():
        if read.has(f"rope.scaling.{key}"):
            scaling[name] = float(read.number(f"rope.scaling.{key}"))
    return scaling


def _llama3_scaling(divisors: GgufTensor, read: _Reader, head_dim: int) -> dict[str, Any] | None:
    """Find the factor whose divisors are those of the file."""
    stored = dequantize(divisors.rows, divisors.quant_type).astype(np.float64).ravel()
    factor = float(stored.max())
    if len(stored) != head_dim // 2:
        raise read.invalid(f"rope_freqs.weight has {len(stored)} values, not {head_dim // 2}")
    if np.allclose(stored, 1.0):
        return None
    theta = read.number("rope.freq_base", DEFAULT_ROPE_THETA)
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (LLAMA3_ORIGINAL_CONTEXT / wavelengths - LLAMA3_LOW_FREQ_FACTOR) / (
        LLAMA3_HIGH_FREQ_FACTOR - LLAMA3_LOW_FREQ_FACTOR
    )
    smooth = smooth.clip(0.0, 1.0)
    if not np.allclose(stored, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise read.invalid("rope_freqs.weight scales positions in another way than Llama 3")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW_FREQ_FACTOR,
        "high_freq_factor": LLAMA3_HIGH_FREQ_FACTOR,
        "original_max_position_embeddings": LLAMA3_ORIGINAL_CONTEXT,
    }
