"""Checkpoints that come quantised: each form means what its definition says, whole and cut."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.build import build_runner
from engine.errors import InvalidConfig, InvalidModel
from engine.model_config import ModelConfig
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.models.decoder_weights import load_decoder
from engine.parallel import TensorParallel
from engine.quantization_config import parse_quantization
from engine.weight_reader import ParallelCheckpoint
from engine.weights import Checkpoint, WeightSource
from kernels import ops, quantized_reference
from kernels.weights import LinearWeight, Packing
from tests.engine.generation import generate_once, small_config
from tests.engine.paged_steps import PagedSequences
from tests.engine.quantized_files import (
    FORMS,
    Form,
    compressed_int4,
    gptq,
    quantize_folder,
    write_folder,
)
from tests.oracle import make_checkpoint

TOKENS = [(7 * i) % 131 for i in range(41)]
INT4_FORMS = [name for name in FORMS if name.startswith(("gptq", "awq", "packed"))]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep weights quantised, as on CUDA; the oracle multiplies them here."""
    monkeypatch.setattr(ops, "keeps_quantized", lambda _device: True)


def quantize(folder: Path, form: Form, name: str = "llama", spared: str = "no layer") -> Path:
    return quantize_folder(make_checkpoint(folder / "plain", name), folder / "it", form, spared)


def make_runner(folder: Path, **changes: object) -> ModelRunner:
    return build_runner(small_config(folder, **changes), TensorParallel.single())[0]


def logits(folder: Path, **changes: object) -> Tensor:
    runner = make_runner(folder, **changes)
    sequences = PagedSequences(runner.num_blocks, 4)
    rows = runner.forward(sequences.step([(sequences.add(TOKENS), len(TOKENS))]))
    assert rows is not None
    return rows.clone()


def load(folder: Path, rank: int = 0, size: int = 1, source: WeightSource | None = None) -> Decoder:
    model = ModelConfig.from_folder(folder)
    group, cpu = TensorParallel(rank, size), torch.device("cpu")
    with source or Checkpoint(folder) as checkpoint:
        return load_decoder(checkpoint, model, group, cpu, torch.float32, Packing.NONE)


def linears(decoder: Decoder) -> list[LinearWeight]:
    halves = [(layer.attention.weights, layer.feed_forward.weights) for layer in decoder.layers]
    return [
        weight
        for attention, ffn in halves
        for weight in (attention.qkv, attention.output, ffn.gate_up, ffn.down)
    ]


def meant(weight: LinearWeight) -> Tensor:
    return quantized_reference.dequantize(weight) if weight.packing.is_grouped else weight.weight


@pytest.mark.parametrize("name", FORMS)
def test_logits_are_those_of_the_dequantized_weights(name: str, tmp_path: Path) -> None:
    folder = quantize(tmp_path, FORMS[name])

    assert torch.equal(logits(folder), logits(folder / "dequantized"))
    assert not torch.equal(logits(folder), logits(tmp_path / "plain"))


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", FORMS)
def test_weights_kept_quantized_give_the_same_logits(name: str, tmp_path: Path) -> None:
    folder = quantize(tmp_path, FORMS[name])
    expected = logits(folder / "dequantized")

    torch.testing.assert_close(logits(folder), expected, rtol=1e-4, atol=1e-3)

    packings = [weight.packing for weight in linears(load(folder))]
    kind = Packing.INT4 if name in INT4_FORMS else Packing.FP8
    if name == "gptq-own-orders":  # query, key and value cannot be one matrix, nor gate and up
        assert packings == [Packing.NONE, kind] * 6
    else:
        assert packings == [kind] * 12


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("model", ["llama-biased", "qwen3"])
def test_each_rank_gets_its_share_of_the_dequantized_weights(
    model: str, name: str, tmp_path: Path
) -> None:
    folder = quantize(tmp_path, FORMS[name], model)

    for rank in range(2):
        of_quantized = linears(load(folder, rank, 2))
        of_plain = linears(load(folder / "dequantized", rank, 2))
        for weight, plain in zip(of_quantized, of_plain, strict=True):
            assert torch.equal(weight.weight, plain.weight)
            if weight.bias is None or plain.bias is None:
                assert weight.bias is plain.bias
            else:
                assert torch.equal(weight.bias, plain.bias)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", FORMS)
def test_the_reader_for_gpus_reads_the_same(name: str, tmp_path: Path) -> None:
    folder = quantize(tmp_path, FORMS[name])
    cpu = torch.device("cpu")

    expected = linears(load(folder))
    found = linears(load(folder, source=ParallelCheckpoint(folder, cpu)))

    for weight, other in zip(found, expected, strict=True):
        assert torch.equal(meant(weight), meant(other))


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", [name for name in FORMS if "order" not in name])
def test_each_rank_keeps_its_share_quantized(name: str, tmp_path: Path) -> None:
    folder = quantize(tmp_path, FORMS[name])

    for rank in range(2):
        of_quantized = linears(load(folder, rank, 2))
        of_plain = linears(load(folder / "dequantized", rank, 2))
        for weight, plain in zip(of_quantized, of_plain, strict=True):
            assert weight.packing.is_grouped
            assert (weight.num_outputs, weight.num_inputs) == (plain.num_outputs, plain.num_inputs)
            assert torch.equal(meant(weight), plain.weight)


def with_head(name: str) -> Form:
    form = FORMS[name]
    says_so: dict[str, Any] = {"lm_head": True} if "gptq" in name else {"ignore": []}
    return Form({**form.settings, **says_so}, form.quantize, has_head=True)


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("name", ["gptq", "packed", "packed-ordered", "compressed-block"])
def test_a_quantized_head_is_read_by_every_rank(
    name: str, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "keeps_quantized", lambda _device: is_kept)
    folder = quantize(tmp_path, with_head(name))

    expected = logits(folder / "dequantized")

    torch.testing.assert_close(logits(folder), expected, rtol=1e-4, atol=1e-3 if is_kept else 0)
    if "order" in name and is_kept:
        return  # ranks would cut groups
    heads = [load(folder, rank, 2).head.weight for rank in range(2)]
    assert {head.packing.is_grouped for head in heads} == {is_kept}
    rows = torch.cat([meant(head) for head in heads])
    assert torch.equal(rows[:131], load(folder / "dequantized").head.weight.weight)


def test_a_tied_head_cannot_be_quantized_apart(tmp_path: Path) -> None:
    folder = quantize(tmp_path, with_head("packed"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))

    with pytest.raises(InvalidModel, match=r"unexpected lm_head\.weight_"):
        load(folder)


@pytest.mark.usefixtures("kept")
def test_a_group_index_that_was_not_set_is_none(tmp_path: Path) -> None:
    folder = quantize(tmp_path, FORMS["packed-symmetric"])
    tensors = load_file(folder / "model.safetensors")
    packed = [name for name in tensors if name.endswith("weight_packed")]
    for name in packed:
        unset = torch.full((8 * tensors[name].shape[1],), -1, dtype=torch.int32)
        tensors[name.replace("weight_packed", "weight_g_idx")] = unset
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = compressed_int4(True, actorder="group")
    expected = linears(load(folder))

    found = linears(load(write_folder(tmp_path / "unset", tensors, config)))

    for weight, other in zip(found, expected, strict=True):
        assert torch.equal(meant(weight), meant(other))


@pytest.mark.usefixtures("kept")
def test_ranks_that_would_cut_groups_are_refused(tmp_path: Path) -> None:
    settings = {**FORMS["gptq"].settings, "group_size": 24}
    folder = quantize(tmp_path / "a", Form(settings, gptq(size=24)))
    ordered = quantize(tmp_path / "b", FORMS["gptq-ordered"])

    for rank in range(2):  # 72 inputs of the down projection are three groups
        with pytest.raises(InvalidConfig, match=r"36 inputs of .*down_proj .* 2 ranks(.|\n)*small"):
            load(folder, rank, 2)
        with pytest.raises(InvalidConfig, match=r"o_proj(.|\n)*desc_act"):
            load(ordered, rank, 2)


def test_where_weights_are_dequantized_ranks_may_cut_groups(tmp_path: Path) -> None:
    settings = {**FORMS["gptq"].settings, "group_size": 24}
    folder = quantize(tmp_path, Form(settings, gptq(size=24)))

    of_quantized, of_plain = (linears(load(f, 1, 2)) for f in (folder, folder / "dequantized"))
    for weight, plain in zip(of_quantized, of_plain, strict=True):
        assert torch.equal(weight.weight, plain.weight)


@pytest.mark.parametrize(
    ("name", "key", "spared", "ignored"),
    [
        ("awq", "modules_to_not_convert", "layers.1", ["lm_head", "layers.1"]),
        ("gptq", "modules_to_not_convert", "mlp.up_proj", ["mlp.up_proj"]),
        ("gptq", "modules_in_block_to_quantize", "_proj", [["mlp.gate", "self_attn.q"]]),
        ("fp8-blocks", "modules_to_not_convert", "mlp.down", ["mlp.down_proj", "mlp.gate"]),
        ("compressed-channel", "ignore", "self_attn", ["lm_head", r"re:.*self_attn\..*"]),
        ("packed", "ignore", "o_proj", ["lm_head", "re:.*o_proj"]),
        ("compressed-tensor", "ignore", "v_proj", ["lm_head", "re:.*[a-u]v_proj", "v_proj"]),
    ],
)
@pytest.mark.parametrize("is_kept", [False, True])
def test_ignored_layers_are_read_as_they_are(
    name: str,
    key: str,
    spared: str,
    ignored: list[Any],
    is_kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "keeps_quantized", lambda _device: is_kept)
    form = FORMS[name]
    form = Form({**form.settings, key: ignored}, form.quantize)
    folder = quantize(tmp_path, form, spared=spared)

    result, expected = logits(folder), logits(folder / "dequantized")

    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-3 if is_kept else 0)


def test_a_quantized_model_generates_on_cpu(tmp_path: Path) -> None:
    folder = quantize(tmp_path, FORMS["awq"], "llama-tied")

    tokens = [
        generate_once(small_config(path), [[1, 2, 3], [4]], 8)
        for path in (folder, folder / "dequantized")
    ]

    assert tokens[0] == tokens[1]


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    folder = quantize(tmp_path, FORMS["fp8-blocks"], spared="layers.2.mlp.up")

    with pytest.raises(
        InvalidModel, match=r"lacks model\.layers\.2\.mlp\.up_proj\.weight_scale_in"
    ):
        load(folder)


_COMPRESSED = FORMS["compressed-channel"].settings
_GROUP = _COMPRESSED["config_groups"]["group_0"]


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"bits": 4}, "None"),
        ({"quant_method": "awq", "bits": 3}, "bits 3"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
        ({"quant_method": "awq", "zero_point": False}, "zero_point False"),
        ({"quant_method": "awq", "group_size": 0}, "group_size 0"),
        ({**FORMS["gptq"].settings, "bits": 8}, "bits 8"),
        ({**FORMS["gptq"].settings, "is_marlin_format": True}, "marlin"),
        ({**FORMS["gptq"].settings, "dynamic": {"-:mlp": {}}}, "dynamic"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"\[128\]"),
        ({**_COMPRESSED, "format": "pack-quantized"}, "pack-quantized"),
        (compressed_int4(True, num_bits=8), "8 bits"),
        (compressed_int4(True, 0), "group_size 0"),
        ({**_COMPRESSED, "config_groups": {}}, "one group"),
        ({**_COMPRESSED, "config_groups": {"g": {**_GROUP, "targets": ["re:.*"]}}}, "targets"),
        ({**_COMPRESSED, "ignore": ["re:("]}, r"re:\("),
    ],
)
def test_what_cannot_be_read_is_refused_with_cause_and_fix(
    settings: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    write_folder(folder, {"a": torch.zeros(1)}, {**config, "quantization_config": settings})

    with pytest.raises(InvalidModel) as error:
        ModelConfig.from_folder(folder)
    assert re.search(cause, error.value.cause)
    assert error.value.fix.startswith(("Use ", "Repair "))


def test_a_layer_is_ignored_by_whole_parts_of_its_name() -> None:
    settings = {**FORMS["fp8-blocks"].settings, "modules_to_not_convert": ["mlp.gate", "lm_head"]}

    quantization = parse_quantization({"quantization_config": settings})

    assert quantization is not None
    assert quantization.covers("model.layers.0.mlp.gate_proj")
    assert not quantization.covers("model.layers.0.mlp.gate")
    assert parse_quantization({}) is None


@pytest.mark.usefixtures("kept")
def test_float8_made_at_load_is_near_the_exact_weights(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama-biased")

    exact, rounded = (logits(folder, quantization=kind) for kind in (None, "fp8"))

    assert 0 < (exact - rounded).norm() < 0.25 * exact.norm()


@pytest.mark.usefixtures("kept")
def test_float8_made_at_load_is_that_of_a_checkpoint_by_channel(tmp_path: Path) -> None:
    folder = quantize(tmp_path, FORMS["compressed-channel"])

    made = logits(tmp_path / "plain", quantization="fp8")

    assert torch.equal(made, logits(folder))


def test_float8_made_at_load_needs_cuda(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")

    with pytest.raises(InvalidConfig, match=r"CUDA.*cpu(.|\n)*--device cuda"):
        make_runner(folder, quantization="fp8")


def test_a_quantized_checkpoint_is_not_rounded_again(tmp_path: Path) -> None:
    folder = quantize(tmp_path, FORMS["awq"])

    with pytest.raises(InvalidConfig, match="already"):
        make_runner(folder, quantization="fp8")
