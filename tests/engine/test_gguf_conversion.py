"""A converted GGUF file is the model that was written into it; transformers is the oracle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

pytest.importorskip("gguf", reason="gguf is not installed here")

import gguf
from gguf import GGMLQuantizationType as QuantType

from engine.errors import InvalidModel
from engine.gguf_conversion import convert_gguf
from engine.gguf_tensors import unpermute_rows
from tests.engine.gguf_checkpoint import (
    CONFIGS,
    byte_tokens,
    gguf_tensors,
    llama3_divisors,
    random_model,
    write_gguf,
)


def ignore(phase: str, done: int, total: int) -> None:
    """Report to nobody."""


def convert(path: Path, folder: Path, **options: Any) -> Path:
    folder.mkdir()
    convert_gguf(path, folder, report=ignore, **options)
    return folder


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(0, 256, (1, 300), generator=torch.Generator().manual_seed(3))
    result: torch.Tensor = model(ids).logits
    return result


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_float32_file_gives_the_same_logits(kind: str, tied: bool, tmp_path: Path) -> None:
    model = random_model(kind, tie_word_embeddings=tied)
    folder = convert(write_gguf(model, tmp_path / "m.gguf"), tmp_path / "m")
    converted = load(folder)
    assert converted.dtype == torch.float32
    assert converted.config.tie_word_embeddings is tied
    assert torch.equal(logits(converted), logits(model))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("quant_type", "dtype"),
    [
        (QuantType.F16, torch.float16),
        (QuantType.BF16, torch.bfloat16),
        (QuantType.Q8_0, torch.bfloat16),
        (QuantType.Q4_1, torch.bfloat16),
        (QuantType.Q5_0, torch.bfloat16),
    ],
)
def test_weights_are_those_of_the_file(
    kind: str, quant_type: QuantType, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = random_model(kind)
    folder = convert(write_gguf(model, tmp_path / "m.gguf", quant_type), tmp_path / "m")
    converted = load(folder)
    assert converted.dtype == dtype
    # Quantising works along rows, so it may be done before or after llama.cpp's reordering.
    for name, expected in model.state_dict().items():
        if expected.ndim > 1:
            stored = gguf.quants.quantize(expected.numpy(), quant_type)
            expected = torch.from_numpy(gguf.quants.dequantize(stored, quant_type).copy())
        assert torch.equal(converted.state_dict()[name], expected.to(dtype)), name


def test_q_rows_of_llama_return_to_their_places() -> None:
    # Two heads of four rows; llama.cpp stores a head's rows 0 1 2 3 as 0 2 1 3.
    stored = np.array([0, 2, 1, 3, 4, 6, 5, 7])
    assert stored[unpermute_rows(8, 2)].tolist() == list(range(8))


def test_attention_biases_of_llama_are_reordered_too(tmp_path: Path) -> None:
    model = random_model("llama", attention_bias=True)
    folder = convert(write_gguf(model, tmp_path / "m.gguf"), tmp_path / "m")
    assert torch.equal(logits(load(folder)), logits(model))


def test_head_dim_may_differ_from_hidden_size_over_heads(tmp_path: Path) -> None:
    model = random_model("qwen3", head_dim=32)
    folder = convert(write_gguf(model, tmp_path / "m.gguf"), tmp_path / "m")
    assert torch.equal(logits(load(folder)), logits(model))


def test_sliding_window_makes_it_a_mistral(tmp_path: Path) -> None:
    model = random_model("mistral", sliding_window=32)
    extra = {"llama.attention.sliding_window": 32}
    folder = convert(write_gguf(model, tmp_path / "m.gguf", extra=extra), tmp_path / "m")
    converted = load(folder)
    assert type(converted).__name__ == "MistralForCausalLM"
    assert torch.equal(logits(converted), logits(model))


@pytest.mark.parametrize(
    ("rope", "extra"),
    [
        (
            {"rope_type": "linear", "factor": 4.0},
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        ),
        ({"rope_type": "linear", "factor": 2.0}, {"llama.rope.scale_linear": 2.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 128,
            },
        ),
        (
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "attention_factor": 1.5,
                "beta_fast": 16.0,
            },
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 128,
                "llama.rope.scaling.yarn_attn_factor": 1.5,
                "llama.rope.scaling.yarn_beta_fast": 16.0,
            },
        ),
    ],
)
def test_rope_scaling_is_kept(rope: dict[str, Any], extra: dict[str, Any], tmp_path: Path) -> None:
    model = random_model("llama", rope_parameters={"rope_theta": 10_000.0, **rope})
    folder = convert(write_gguf(model, tmp_path / "m.gguf", extra=extra), tmp_path / "m")
    assert torch.equal(logits(load(folder)), logits(model))


def llama3_model() -> PreTrainedModel:
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    return random_model("llama", rope_parameters=rope, max_position_embeddings=131_072)


def test_frequency_divisors_of_llama3_become_its_rope_scaling(tmp_path: Path) -> None:
    model = llama3_model()
    divisors = {"rope_freqs.weight": llama3_divisors(model.config)}
    path = write_gguf(model, tmp_path / "m.gguf", extra_tensors=divisors)
    converted = load(convert(path, tmp_path / "m"))
    assert converted.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(logits(converted), logits(model))


def test_other_frequency_divisors_are_refused(tmp_path: Path) -> None:
    model = llama3_model()
    divisors = {"rope_freqs.weight": llama3_divisors(model.config) ** 2}
    path = write_gguf(model, tmp_path / "m.gguf", extra_tensors=divisors)
    with pytest.raises(InvalidModel, match="another way than Llama 3"):
        convert(path, tmp_path / "m")


def test_end_tokens_are_those_of_the_file_and_the_control_tokens_of_that_name(
    tmp_path: Path,
) -> None:
    folder = convert(write_gguf(random_model("llama"), tmp_path / "m.gguf"), tmp_path / "m")
    config = json.loads((folder / "generation_config.json").read_text())
    assert config == {"bos_token_id": 256, "eos_token_id": [257, 258]}
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 257


def test_transformers_reads_the_same_tokenizer(tmp_path: Path) -> None:
    folder = convert(write_gguf(random_model("llama"), tmp_path / "m.gguf"), tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "<|start|>Hi<|im_end|>"
    assert tokenizer(text).input_ids == [256, *map(byte_tokens().index, "Hi"), 257]
    assert tokenizer.apply_chat_template([{"content": "Hi"}], tokenize=False) == text


def test_big_model_is_written_in_shards_that_hold_every_tensor_once(tmp_path: Path) -> None:
    model = random_model("llama")
    path = write_gguf(model, tmp_path / "m.gguf")
    folder = convert(path, tmp_path / "m", max_shard_bytes=100_000)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    names = []
    for shard in shards:
        with safe_open(shard, "pt") as file:
            names += list(file.keys())
    assert sorted(names) == sorted(model.state_dict())
    assert torch.equal(logits(load(folder)), logits(model))


def test_progress_ends_at_the_number_of_weights(tmp_path: Path) -> None:
    model = random_model("llama")
    seen: list[tuple[str, int, int]] = []
    (tmp_path / "m").mkdir()
    path = write_gguf(model, tmp_path / "m.gguf")
    convert_gguf(path, tmp_path / "m", report=lambda *step: seen.append(step))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert seen[-1] == ("Converting m.gguf", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def write_other(
    path: Path, *, drop: str = "", add: str = "", architecture: str = "", quant_type: int = 0
) -> Path:
    """Write a file that has something wrong with it."""
    model = random_model("llama")
    whole = write_gguf(model, path.with_suffix(".whole"))
    writer = gguf.GGUFWriter(path, architecture or "llama")
    for name, field in gguf.GGUFReader(whole).fields.items():
        if not name.startswith(("GGUF.", "general.")):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    tensors = gguf_tensors(model, "llama")
    if add:
        tensors[add] = np.ones((2, 32), np.float32)
    for name, tensor in tensors.items():
        if name == "blk.1.ffn_up.weight" and quant_type:
            kind = QuantType(quant_type)
            rows = np.zeros(gguf.quant_shape_to_byte_shape((96, 64), kind), np.uint8)
            writer.add_tensor(name, rows, raw_dtype=kind)
        elif name != drop:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("wrong", "cause", "fix"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'", "llama, qwen2, qwen3"),
        ({"drop": "blk.1.ffn_up.weight"}, r"no tensor blk\.1\.ffn_up\.weight", "another GGUF"),
        ({"add": "blk.0.ffn_gate_inp.weight"}, r"blk\.0\.ffn_gate_inp\.weight", "another GGUF"),
        ({"quant_type": QuantType.NVFP4}, r"ffn_up\.weight as NVFP4", "Q4_1.*Q8_0"),
    ],
)
def test_file_that_cannot_be_served_is_refused_before_anything_is_written(
    wrong: dict[str, Any], cause: str, fix: str, tmp_path: Path
) -> None:
    path = write_other(tmp_path / "m.gguf", **wrong)
    with pytest.raises(InvalidModel, match=cause) as error:
        convert(path, tmp_path / "m")
    assert error.match(fix)
    assert list((tmp_path / "m").iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "cause"),
    [
        ({"llama.expert_count": 8}, r"llama\.expert_count is 8"),
        ({"llama.rope.dimension_count": 8}, r"rope\.dimension_count is 8"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope'"),
        ({"llama.attention.head_count_kv": [2, 4]}, r"head_count_kv is \[2, 4\]"),
        ({"llama.block_count": 0}, "block_count is 0"),
    ],
)
def test_variant_of_the_architecture_that_we_do_not_compute_is_refused(
    extra: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    path = write_gguf(random_model("llama"), tmp_path / "m.gguf", extra=extra)
    with pytest.raises(InvalidModel, match=cause):
        convert(path, tmp_path / "m")
