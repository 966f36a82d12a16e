"""Random weights in place of a quantised checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.dummy_checkpoint import DummyCheckpoint
from engine.model_config import ModelConfig
from engine.models.decoder import Decoder
from engine.models.decoder_tensors import expected_tensors
from engine.models.decoder_weights import load_decoder
from engine.parallel import TensorParallel
from engine.quantization_config import Scheme
from engine.quantized_checkpoint import read_matrix
from engine.weight_prediction import weight_bytes
from kernels import ops
from kernels.weights import Packing
from tests.engine.generation import generate_once, small_config
from tests.engine.quantized_files import FORMS, quantize_folder
from tests.oracle import make_checkpoint

CPU = torch.device("cpu")
FORM_NAMES = [name for name in FORMS if name != "gptq-own-orders"]
"""The two orders differ in their tensors' contents alone."""


@pytest.fixture(params=FORM_NAMES)
def form_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def folder(form_name: str, tmp_path: Path) -> Path:
    """A quantised checkpoint with biases."""
    plain = make_checkpoint(tmp_path / "plain", "llama-biased")
    return quantize_folder(plain, tmp_path / "it", FORMS[form_name])


def stand_in(model: ModelConfig) -> DummyCheckpoint:
    dummy = DummyCheckpoint(model.dtype, CPU, model.quantization)
    dummy.check(dict(expected_tensors(model)), ())
    return dummy


def scheme_of(model: ModelConfig) -> Scheme:
    assert model.quantization is not None
    return model.quantization.scheme


def load(model: ModelConfig, size: int = 1) -> Decoder:
    dummy = DummyCheckpoint(model.dtype, CPU, model.quantization)
    group = TensorParallel(0, size)
    with dummy:
        return load_decoder(dummy, model, group, CPU, torch.float32, Packing.NONE)


def test_tensors_are_of_the_shapes_and_dtypes_that_a_checkpoint_has(folder: Path) -> None:
    model = ModelConfig.from_folder(folder)
    files, dummy = load_file(folder / "model.safetensors"), stand_in(model)

    for name, shape in expected_tensors(model):
        tensor = dummy.read(name)
        # Hugging Face's "fp8" once had scalars, and we ask for vectors of one.
        assert (tensor.dtype, tensor.shape) == (files[name].dtype, files[name].shape or (1,))
        assert tensor.shape == shape
        if name.endswith("g_idx"):
            assert tensor.bincount().tolist() == files[name].bincount().tolist()


def test_weights_are_small_and_differ(folder: Path) -> None:
    model = ModelConfig.from_folder(folder)
    scheme, dummy = scheme_of(model), stand_in(model)
    inputs = slice(0, model.hidden_size)

    def weights(name: str, rows: slice) -> Tensor:
        return read_matrix(dummy.read, f"model.layers.0.{name}", scheme, rows, inputs).dequantize()

    query, key = (weights(f"self_attn.{part}_proj", slice(0, 16)) for part in "qk")
    for matrix in (query, key):
        assert matrix.isfinite().all()
        assert 0.005 < matrix.std() < matrix.abs().max() <= 0.0501
        assert len({row.numpy().tobytes() for row in matrix}) == len(matrix)
    assert not torch.equal(query, key)
    again = read_matrix(
        dummy.read, "model.layers.0.self_attn.q_proj", scheme, slice(0, 16), inputs
    ).dequantize()
    assert torch.equal(query, again)


@pytest.mark.parametrize("is_kept", [False, True])
def test_they_take_what_a_checkpoint_would(
    form_name: str, folder: Path, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "keeps_quantized", lambda _device: is_kept)
    model = ModelConfig.from_folder(folder)
    can_share = not (is_kept and "order" in form_name)

    for size in (1, 2) if can_share else (1,):
        predicted = weight_bytes(model, size, torch.float32, Packing.NONE, is_kept)
        assert load(model, size).num_bytes == predicted


@pytest.mark.parametrize(
    "form_name", ["awq", "gptq-ordered", "packed", "fp8-blocks"], indirect=True
)
@pytest.mark.parametrize("is_kept", [False, True])
def test_an_engine_runs_on_a_config_alone(
    folder: Path, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "keeps_quantized", lambda _device: is_kept)
    (folder / "model.safetensors").unlink()
    config = small_config(folder, load_format="dummy")

    first, again = (generate_once(config, [[1, 2, 3], [4] * 30], 4) for _ in range(2))

    assert [len(ids) for ids in first] == [4, 4]
    assert first == again
