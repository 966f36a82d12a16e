"""Random weights in place of a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine import LLM, SamplingParams
from engine.dummy_checkpoint import DummyCheckpoint
from engine.errors import InvalidConfig, InvalidModel
from engine.model_config import ModelConfig
from engine.models.decoder_weights import load_decoder
from engine.parallel import TensorParallel
from engine.tokenizer import Tokenizer
from kernels.weights import Packing
from tests.engine.generation import generate_once, small_config
from tests.oracle import CHECKPOINTS, make_checkpoint

CPU = torch.device("cpu")


def config_alone(folder: Path, name: str = "llama") -> Path:
    """Make a model folder with nothing but its config.json."""
    make_checkpoint(folder, name)
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    return folder


def checkpoint(dtype: torch.dtype = torch.float32) -> DummyCheckpoint:
    dummy = DummyCheckpoint(dtype, CPU)
    dummy.check({"a": (1000, 2003), "b": (7,), "c": (1000, 2003)}, ())
    return dummy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_have_the_shape_that_was_asked_for_and_small_values(dtype: torch.dtype) -> None:
    dummy = checkpoint(dtype)

    whole, vector = dummy.read("a"), dummy.read("b", slice(2, 5))

    assert (whole.shape, whole.dtype) == ((1000, 2003), dtype)
    assert dummy.read("a", slice(3, 9), slice(0, 50)).shape == (6, 50)
    assert (vector.shape, vector.dtype) == ((3,), dtype)
    assert 0.04 < whole.abs().max() <= 0.0501
    assert whole.float().mean().abs() < 1e-3
    assert whole.untyped_storage().nbytes() == whole.nbytes


def test_no_two_rows_and_no_two_tensors_are_alike() -> None:
    dummy = checkpoint()
    a, c = dummy.read("a"), dummy.read("c")

    assert len({row.numpy().tobytes() for row in a}) == len(a)
    assert not torch.equal(a, c)


def test_ranks_that_ask_for_the_same_get_the_same() -> None:
    share = (slice(5, 9), slice(0, 4))
    assert torch.equal(checkpoint().read("a", *share), checkpoint().read("a", *share))


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("size", [1, 2])
def test_every_architecture_loads_and_takes_what_a_checkpoint_would(
    name: str, size: int, tmp_path: Path
) -> None:
    model = ModelConfig.from_folder(config_alone(tmp_path, name))
    with DummyCheckpoint(model.dtype, CPU) as dummy:
        decoder = load_decoder(
            dummy, model, TensorParallel(0, size), CPU, torch.float32, Packing.NONE
        )
    assert len(decoder.layers) == model.num_layers


def test_an_engine_runs_on_a_config_alone(tmp_path: Path) -> None:
    config = small_config(config_alone(tmp_path), load_format="dummy")

    first, again = (generate_once(config, [[1, 2, 3], [4] * 30], 8) for _ in range(2))

    assert [len(ids) for ids in first] == [8, 8]
    assert first == again


def test_token_prompts_need_no_tokenizer(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"kv_cache_bytes": 4 << 20, "num_threads": 1, "dtype": "float32"}
    params = SamplingParams(max_tokens=5, ignore_eos=True, seed=1)
    with LLM(config_alone(tmp_path), load_format="dummy", device="cpu", **settings) as llm:
        [generation] = llm.generate([[1, 2, 3]], params)
    assert len(generation.choices[0].token_ids) == 5
    assert generation.choices[0].text == ""


def test_text_needs_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(config_alone(tmp_path))


def test_weights_are_missed_where_they_were_not_given_up(tmp_path: Path) -> None:
    folder = config_alone(tmp_path)
    with pytest.raises(InvalidModel, match=r"safetensors missing"):
        LLM(folder, device="cpu")
    with pytest.raises(InvalidConfig, match="load format is 'gguf'"):
        small_config(folder, load_format="gguf")
