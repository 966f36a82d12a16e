"""What a checkpoint is made of, as its config.json tells it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from engine.errors import InvalidConfig, InvalidModel
from engine.model_folder import CONFIG_NAME, read_json
from engine.quantization_config import QuantizationConfig, parse_quantization
from engine.rope_config import RopeConfig, parse_rope


class _Windows(Enum):
    """Which layers may have a sliding window."""

    NONE = "none"
    ALL = "all"
    BY_LAYER = "by layer, if use_sliding_window"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Architecture:
    """How an architecture differs from the others, and what it takes for granted."""

    qkv_bias: bool | None
    """None: as `attention_bias` says."""
    output_bias: bool | None
    """None: as `attention_bias` says."""
    may_have_mlp_bias: bool = False
    qk_norm: bool = False
    windows: _Windows = _Windows.NONE
    default_num_kv_heads: int | None = None
    """None: as many as heads."""
    default_head_dim: int | None = None
    """None: hidden size divided by heads."""
    default_max_position: int
    default_window: int | None = None


_ARCHITECTURES = {
    "LlamaForCausalLM": _Architecture(
        qkv_bias=None, output_bias=None, may_have_mlp_bias=True, default_max_position=2048
    ),
    "MistralForCausalLM": _Architecture(
        qkv_bias=False,
        output_bias=False,
        windows=_Windows.ALL,
        default_num_kv_heads=8,
        default_max_position=131072,
        default_window=4096,
    ),
    "Qwen2ForCausalLM": _Architecture(
        qkv_bias=True,
        output_bias=False,
        windows=_Windows.BY_LAYER,
        default_max_position=32768,
        default_window=4096,
    ),
    "Qwen3ForCausalLM": _Architecture(
        qkv_bias=None,
        output_bias=None,
        qk_norm=True,
        windows=_Windows.BY_LAYER,
        default_head_dim=128,
        default_max_position=32768,
        default_window=4096,
    ),
}
SUPPORTED_ARCHITECTURES = tuple(_ARCHITECTURES)
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything the decoder needs to know of a checkpoint; architectures differ in data alone."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    max_position: int
    """Longest sequence the model was made for, in tokens."""
    rope: RopeConfig
    sliding_windows: tuple[int | None, ...]
    """For each layer: positions seen, counted back from the query's own; None: all."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    eos_token_ids: frozenset[int] = frozenset()
    """Of config.json and generation_config.json together."""
    dtype: torch.dtype = torch.float32
    """Of the checkpoint; the engine may compute in another."""
    quantization: QuantizationConfig | None = None
    """How the checkpoint keeps its linear layers; None: like all else."""

    @classmethod
    def from_folder(cls, path: Path) -> "ModelConfig":
        """Read a model folder's config.json and generation_config.json. Raises InvalidModel."""
        generation_path = path / "generation_config.json"
        generation = read_json(generation_path) if generation_path.exists() else {}
        return cls.from_json(read_json(path / CONFIG_NAME), generation)

    @classmethod
    def from_json(
        cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> "ModelConfig":
        """Take what config.json and generation_config.json hold.

        Raises InvalidModel when we cannot serve it.
        """
        architecture, rules = _known_architecture(config)
        _refuse_what_changes_the_maths(config)
        num_heads = _size(config, "num_attention_heads")
        num_kv_heads = _size(config, "num_key_value_heads", rules.default_num_kv_heads or num_heads)
        hidden_size = _size(config, "hidden_size")
        if num_heads % num_kv_heads:
            raise InvalidModel(
                f"{num_heads} heads cannot share {num_kv_heads} KV heads evenly.",
                "Repair num_key_value_heads in the model's config.json.",
            )
        max_position = _size(config, "max_position_embeddings", rules.default_max_position)
        num_layers = _size(config, "num_hidden_layers")
        biased = bool(config.get("attention_bias", False))
        return cls(
            architecture=architecture,
            vocab_size=_size(config, "vocab_size"),
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=_head_dim(config, rules, hidden_size, num_heads),
            intermediate_size=_size(config, "intermediate_size"),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            max_position=max_position,
            rope=parse_rope(config, max_position),
            sliding_windows=_sliding_windows(config, rules, num_layers),
            qkv_bias=biased if rules.qkv_bias is None else rules.qkv_bias,
            output_bias=biased if rules.output_bias is None else rules.output_bias,
            mlp_bias=rules.may_have_mlp_bias and bool(config.get("mlp_bias", False)),
            qk_norm=rules.qk_norm,
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            eos_token_ids=_eos_token_ids(config, generation or {}),
            dtype=_dtype(config),
            quantization=parse_quantization(config),
        )


def check_parallel_size(model: ModelConfig, size: int) -> None:
    """Raise InvalidConfig, naming the sizes that work, if `size` ranks cannot share the model."""
    if _can_share(model, size):
        return
    sizes = parallel_sizes(model)
    raise InvalidConfig(
        f"Tensor parallel size {size} does not divide the model: {model.num_heads} heads, "
        f"{model.num_kv_heads} KV heads, intermediate size {model.intermediate_size}.",
        f"Use a size of {', '.join(map(str, sizes))}.",
    )


def parallel_sizes(model: ModelConfig) -> list[int]:
    """Return every number of ranks that can share the model."""
    return [size for size in range(1, model.num_heads + 1) if _can_share(model, size)]


def _can_share(model: ModelConfig, size: int) -> bool:
    splits_kv = model.num_kv_heads % size == 0 or size % model.num_kv_heads == 0
    return splits_kv and model.num_heads % size == 0 and model.intermediate_size % size == 0


def _known_architecture(config: Mapping[str, Any]) -> tuple[str, _Architecture]:
    names = config.get("architectures") or []
    for name in names:
        if name in _ARCHITECTURES:
            return name, _ARCHITECTURES[name]
    found = ", ".join(map(str, names)) or f"none (model_type {config.get('model_type')!r})"
    raise InvalidModel(
        f"The model's architecture is not supported: {found}.",
        f"Use one of {', '.join(SUPPORTED_ARCHITECTURES)}.",
    )


def _refuse_what_changes_the_maths(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise InvalidModel(
            f"The model's activation is {activation!r}, which is not supported.",
            "Use a model with hidden_act silu.",
        )


def _head_dim(
    config: Mapping[str, Any], rules: _Architecture, hidden_size: int, num_heads: int
) -> int:
    if (
        config.get("head_dim") is None
        and rules.default_head_dim is None
        and hidden_size % num_heads
    ):
        raise InvalidModel(
            f"Hidden size {hidden_size} is no multiple of {num_heads} heads.",
            "Repair the model's config.json, or add head_dim to it.",
        )
    head_dim = _size(config, "head_dim", rules.default_head_dim or hidden_size // num_heads)
    if head_dim % 2:
        raise InvalidModel(
            f"The head size {head_dim} is odd, so its elements cannot rotate in pairs.",
            "Repair head_dim in the model's config.json.",
        )
    return head_dim


def _sliding_windows(
    config: Mapping[str, Any], rules: _Architecture, num_layers: int
) -> tuple[int | None, ...]:
    uses_windows = rules.windows is _Windows.ALL or bool(config.get("use_sliding_window", False))
    if rules.windows is _Windows.NONE or not uses_windows:
        return (None,) * num_layers
    window = config.get("sliding_window", rules.default_window)
    if window is not None and (not isinstance(window, int) or window < 1):
        raise InvalidModel(
            f"The model's sliding window is {window!r}.",
            "Repair sliding_window in the model's config.json: a positive number or null.",
        )
    if rules.windows is _Windows.ALL:
        return (window,) * num_layers
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    known = {"full_attention": None, "sliding_attention": window}
    if len(kinds) != num_layers or not set(kinds) <= set(known):
        raise InvalidModel(
            f"The model's layer_types {sorted(set(map(str, kinds)))} for {len(kinds)} layers "
            "are not supported.",
            f"Use a model whose {num_layers} layers are full_attention or sliding_attention.",
        )
    return tuple(known[kind] for kind in kinds)


def _eos_token_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> frozenset[int]:
    ids: set[int] = set()
    for source in (config, generation):
        value = source.get("eos_token_id")
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)


def _dtype(config: Mapping[str, Any]) -> torch.dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in _DTYPES:
        raise InvalidModel(
            f"The checkpoint's dtype is {name!r}.", f"Use one of {', '.join(_DTYPES)}."
        )
    return _DTYPES[name]


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidModel(
            f"The model's config.json has no usable {name!r} (found {value!r}).",
            "Check that the folder holds a complete Hugging Face model.",
        )
    return value
