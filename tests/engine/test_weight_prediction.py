"""The predicted bytes of weights against those of a load, in every form that they are kept in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import InvalidConfig
from engine.model_config import ModelConfig
from engine.models.decoder_weights import load_decoder
from engine.parallel import TensorParallel
from engine.weight_prediction import check_groups, weight_bytes
from engine.weights import Checkpoint
from kernels import ops
from kernels.weights import Packing
from tests.engine.quantized_files import FORMS, Form, quantize_folder
from tests.oracle import CHECKPOINTS, make_checkpoint

CPU = torch.device("cpu")


def store_as(folder: Path, dtype: torch.dtype) -> Path:
    """Write a checkpoint again in another dtype."""
    path = folder / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def built_bytes(
    folder: Path, dtype: torch.dtype, packing: Packing, rank: int = 0, size: int = 1
) -> int:
    model = ModelConfig.from_folder(folder)
    with Checkpoint(folder) as checkpoint:
        group = TensorParallel(rank, size)
        return load_decoder(checkpoint, model, group, CPU, dtype, packing).num_bytes


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_of_every_architecture_are_predicted_to_the_byte(name: str, tmp_path: Path) -> None:
    # A vocabulary and widths that fill no panel evenly, and biases where there are any.
    folder = make_checkpoint(tmp_path, name)
    model = ModelConfig.from_folder(folder)

    for size in (1, 2):
        for packing in {Packing.NONE, ops.choose_packing(torch.float32, CPU)}:
            predicted = weight_bytes(model, size, torch.float32, packing, False)
            assert predicted == built_bytes(folder, torch.float32, packing, size=size)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("dtype", "packing"),
    [
        (torch.float32, Packing.PANELS),
        (torch.float32, Packing.INT8_PANELS),
        (torch.float32, Packing.NONE),
        (torch.bfloat16, Packing.NONE),
        (torch.bfloat16, Packing.FP8),
    ],
)
def test_every_form_of_weights_is_predicted_to_the_byte(
    stored: torch.dtype, dtype: torch.dtype, packing: Packing, tmp_path: Path
) -> None:
    if packing.is_native and not ops.can_quantize(dtype, CPU):
        pytest.skip("the compiled kernels do not run here")
    folder = store_as(make_checkpoint(tmp_path, "llama-tied"), stored)
    model = ModelConfig.from_folder(folder)

    assert model.dtype == stored
    assert weight_bytes(model, 1, dtype, packing, False) == built_bytes(folder, dtype, packing)


def test_the_first_rank_is_the_one_that_is_predicted_and_has_the_most(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama-biased")
    model = ModelConfig.from_folder(folder)

    predicted = weight_bytes(model, 2, torch.float32, Packing.NONE, False)
    ranks = [built_bytes(folder, torch.float32, Packing.NONE, rank, 2) for rank in range(2)]

    assert ranks[0] == predicted == max(ranks)
    assert min(ranks) > 0.97 * predicted


@pytest.fixture(params=[False, True])
def is_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Dequantise at load, as on CPU, or keep what is quantised, as on CUDA."""
    kept: bool = request.param
    monkeypatch.setattr(ops, "keeps_quantized", lambda _device: kept)
    return kept


def assert_predicted(folder: Path, is_kept: bool, sizes: tuple[int, ...] = (1, 2)) -> None:
    model = ModelConfig.from_json(json.loads((folder / "config.json").read_text()))
    kinds = [(torch.float32, Packing.NONE), (torch.bfloat16, Packing.NONE)]
    if not is_kept and ops.can_quantize(torch.float32, CPU):
        kinds += [(torch.float32, Packing.PANELS), (torch.float32, Packing.INT8_PANELS)]
    for size in sizes:
        for dtype, packing in kinds:
            predicted = weight_bytes(model, size, dtype, packing, is_kept)
            assert predicted == built_bytes(folder, dtype, packing, size=size)


@pytest.mark.parametrize("name", [name for name in FORMS if name != "gptq-own-orders"])
@pytest.mark.parametrize("model", ["llama-biased", "qwen3"])
def test_quantised_weights_are_predicted_to_the_byte(
    model: str, name: str, is_kept: bool, tmp_path: Path
) -> None:
    folder = quantize_folder(make_checkpoint(tmp_path / "plain", model), tmp_path, FORMS[name])

    can_share = not (is_kept and "order" in name)
    assert_predicted(folder, is_kept, (1, 2) if can_share else (1,))


@pytest.mark.parametrize("spared", ["v_proj", "up_proj", "o_proj", "layers.1"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_that_are_quantised_in_part_are_predicted_to_the_byte(
    spared: str, stored: torch.dtype, is_kept: bool, tmp_path: Path
) -> None:
    plain = store_as(make_checkpoint(tmp_path / "plain", "llama-tied"), stored)
    settings = {**FORMS["awq"].settings, "modules_to_not_convert": [spared]}
    form = Form(settings, FORMS["awq"].quantize)

    assert_predicted(quantize_folder(plain, tmp_path / "it", form, spared), is_kept)


def test_a_quantised_head_is_predicted_to_the_byte(is_kept: bool, tmp_path: Path) -> None:
    form = FORMS["packed"]
    form = Form({**form.settings, "ignore": []}, form.quantize, has_head=True)
    folder = quantize_folder(make_checkpoint(tmp_path / "plain", "llama"), tmp_path, form)

    assert_predicted(folder, is_kept)


def test_one_order_is_predicted_for_all_that_have_the_same_inputs(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain", "llama")
    same, own = (
        ModelConfig.from_folder(quantize_folder(plain, tmp_path / name, FORMS[name]))
        for name in ("gptq-ordered", "gptq-own-orders")
    )

    predicted = [weight_bytes(model, 1, torch.float16, Packing.NONE, True) for model in (same, own)]

    assert predicted[0] == predicted[1]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [({}, []), ({"group_size": 24}, [2]), ({"desc_act": True}, [2]), ({"group_size": 72}, [])],
)
def test_ranks_that_would_cut_groups_are_refused(
    changes: dict[str, object], refused: list[int], tmp_path: Path
) -> None:
    config = json.loads((make_checkpoint(tmp_path, "llama") / "config.json").read_text())
    config["quantization_config"] = {**FORMS["gptq"].settings, **changes}
    model = ModelConfig.from_json(config)

    for size in (1, 2):
        if size in refused:
            with pytest.raises(InvalidConfig, match=r"whole groups(.|\n)*smaller tensor"):
                check_groups(model, size)
        else:
            check_groups(model, size)
