"""What is read from config.json, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.errors import InvalidModel
from engine.model_config import ModelConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def read(folder: Path, **changes: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return ModelConfig.from_folder(folder)


def test_a_short_config_gets_the_defaults_of_its_architecture(tmp_path: Path) -> None:
    model = read(tmp_path)

    assert (model.num_kv_heads, model.head_dim, model.max_position) == (4, 8, 2048)
    assert (model.qkv_bias, model.output_bias, model.mlp_bias, model.qk_norm) == (False,) * 4
    assert model.sliding_windows == (None, None, None)
    assert (model.tie_embeddings, model.rms_norm_eps) == (False, 1e-6)
    assert model.dtype == torch.float32
    assert model.eos_token_ids == frozenset()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.LlamaConfig(), "LlamaForCausalLM"),
        (transformers.MistralConfig(), "MistralForCausalLM"),
        (transformers.Qwen2Config(), "Qwen2ForCausalLM"),
        (transformers.Qwen3Config(), "Qwen3ForCausalLM"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_defaults_are_those_of_transformers(config: Any, expected: str, tmp_path: Path) -> None:
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(config, name) for name in (*kept, "intermediate_size")}
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [expected], **sizes}))

    model = ModelConfig.from_folder(tmp_path)

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert model.num_kv_heads == config.num_key_value_heads
    assert model.head_dim == head_dim
    assert model.max_position == config.max_position_embeddings
    assert model.rms_norm_eps == config.rms_norm_eps
    assert model.tie_embeddings == config.tie_word_embeddings
    assert set(model.sliding_windows) == {getattr(config, "sliding_window", None)}


def test_biases_follow_architecture_and_config(tmp_path: Path) -> None:
    biased = {"attention_bias": True, "mlp_bias": True}

    llama = read(tmp_path, **biased)
    qwen2 = read(tmp_path, architectures=["Qwen2ForCausalLM"])
    qwen3 = read(tmp_path, architectures=["Qwen3ForCausalLM"], **biased)
    mistral = read(tmp_path, architectures=["MistralForCausalLM"], num_key_value_heads=4, **biased)

    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.mlp_bias) == (True, False, False)
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.mlp_bias) == (True, True, False)
    assert (mistral.qkv_bias, mistral.output_bias, mistral.mlp_bias) == (False, False, False)
    assert qwen3.qk_norm
    assert not qwen2.qk_norm


def test_windows_are_given_to_the_layers_that_have_them(tmp_path: Path) -> None:
    mistral: Any = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 4}
    qwen: Any = {"architectures": ["Qwen3ForCausalLM"], "sliding_window": 8}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]

    assert read(tmp_path, **mistral, sliding_window=5).sliding_windows == (5, 5, 5)
    assert read(tmp_path, **mistral, sliding_window=None).sliding_windows == (None, None, None)
    assert read(tmp_path, sliding_window=5).sliding_windows == (None, None, None)
    assert read(tmp_path, **qwen).sliding_windows == (None, None, None)
    used = {**qwen, "use_sliding_window": True}
    assert read(tmp_path, **used, max_window_layers=1).sliding_windows == (None, 8, 8)
    assert read(tmp_path, **used, layer_types=kinds).sliding_windows == (8, None, 8)


def test_end_tokens_of_both_files_count(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 9]}))

    assert read(tmp_path, eos_token_id=2).eos_token_ids == {2, 3, 9}


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_checkpoints_dtype_is_found_under_either_name(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, **{name: "bfloat16"}).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": [], "model_type": "bert"}, "bert"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "aqlm"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "KV heads"),
        ({"hidden_size": 30}, "Hidden size 30"),
        ({"head_dim": 7}, "odd"),
        ({"dtype": "int8"}, "int8"),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 0,
            },
            "sliding window",
        ),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "layer_types": ["full_attention", "linear_attention", "full_attention"],
            },
            "linear_attention",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_we_cannot_compute_rightly_is_refused_by_name(
    changes: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidModel) as error:
        read(tmp_path, **changes)

    assert cause in error.value.cause
    assert error.value.fix


def test_an_unsupported_architecture_is_refused_with_those_supported(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="LlamaForCausalLM, MistralForCausalLM, Qwen2"):
        read(tmp_path, architectures=["GPT2LMHeadModel"])


@pytest.mark.parametrize("content", [None, "{", "[1]"], ids=["missing", "broken", "no object"])
def test_a_folder_without_a_usable_config_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)

    with pytest.raises(InvalidModel, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)
