"""Reading checkpoints: shards, slices, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.device import choose_device
from engine.errors import InvalidModel
from engine.model_config import ModelConfig
from engine.models.decoder import Decoder
from engine.models.decoder_weights import load_decoder
from engine.parallel import TensorParallel
from engine.weights import Checkpoint
from kernels.weights import Packing
from tests.engine.generation import generate_once, small_config
from tests.oracle import make_checkpoint


def save(folder: Path, **tensors: Tensor) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


def matrix() -> Tensor:
    return torch.arange(12, dtype=torch.float32).view(4, 3)


def test_slices_are_read_as_they_are_stored(tmp_path: Path) -> None:
    save(tmp_path, a=matrix(), b=torch.arange(5.0).bfloat16(), c=torch.tensor(3.0))

    with Checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read("a"), matrix())
        assert torch.equal(checkpoint.read("a", slice(1, 3)), matrix()[1:3])
        assert torch.equal(checkpoint.read("a", columns=slice(1, 2)), matrix()[:, 1:2])
        assert torch.equal(checkpoint.read("a", slice(3, 4), slice(0, 2)), matrix()[3:4, :2])
        assert torch.equal(checkpoint.read("b", slice(2, 4)).float(), torch.tensor([2.0, 3.0]))
        assert checkpoint.read("a").dtype == torch.float32
        assert checkpoint.read("b").dtype == torch.bfloat16
        assert checkpoint.read("c") == 3.0
        checkpoint.check({"a": (4, 3), "b": (5,), "c": (1,)}, ())


def test_what_is_read_outlives_the_files(tmp_path: Path) -> None:
    save(tmp_path, a=matrix())
    with Checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.read("a", slice(0, 2))
    (tmp_path / "model.safetensors").write_bytes(b"gone")

    assert torch.equal(tensor, matrix()[:2])


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    save_file({"a": matrix()}, tmp_path / "one.safetensors")
    save_file({"b": matrix() + 1}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with Checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read("b"), matrix() + 1)
        checkpoint.check({"a": (4, 3), "b": (4, 3)}, ())


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    save(tmp_path, a=matrix(), b=matrix(), c_ignored=matrix())

    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.check({"a": (4, 3), "b": (4, 3)}, ("_ignored",))
        with pytest.raises(InvalidModel, match="lacks z"):
            checkpoint.check({"a": (4, 3), "b": (4, 3), "z": (1,)}, ("_ignored",))
        with pytest.raises(InvalidModel, match="unexpected b"):
            checkpoint.check({"a": (4, 3)}, ("_ignored",))
        with pytest.raises(InvalidModel, match=r"a \[4, 3\] instead of \[3, 4\]"):
            checkpoint.check({"a": (3, 4), "b": (4, 3)}, ("_ignored",))
        names = {f"n{i}": (1,) for i in range(12)}
        with pytest.raises(InvalidModel, match="lacks n0, n1, n2, n3, n4 and 7 more"):
            checkpoint.check({"a": (4, 3), "b": (4, 3), **names}, ("_ignored",))


@pytest.mark.parametrize("content", [None, b"", b"not a tensor file" * 10])
def test_missing_and_broken_files_are_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(InvalidModel, match=r"model\.safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": {"a": "gone.safetensors"}}'])
def test_a_broken_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)

    with pytest.raises(InvalidModel, match="safetensors"):
        Checkpoint(tmp_path)


def load(folder: Path, rank: int, size: int) -> Decoder:
    config = small_config(folder)
    model = ModelConfig.from_folder(folder)
    device = choose_device(config)
    with Checkpoint(folder) as checkpoint:
        return load_decoder(
            checkpoint, model, TensorParallel(rank, size), device, torch.float32, Packing.NONE
        )


def test_a_rank_reads_only_its_own_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path, "qwen2", tie_word_embeddings=False)
    num_elements: dict[str, int] = {}
    read = Checkpoint.read

    def count(self: Checkpoint, name: str, *slices: slice, **more: slice) -> Tensor:
        tensor = read(self, name, *slices, **more)
        num_elements[name] = tensor.numel()
        return tensor

    monkeypatch.setattr(Checkpoint, "read", count)
    load(folder, 1, 2)
    half = dict(num_elements)
    load(folder, 0, 1)

    matrices = {name for name in half if "norm" not in name}
    assert len(matrices) == 2 + 3 * 10
    for name in matrices:
        # The vocabulary of 131 is split 66 and 65.
        expected = 65 * 48 if "embed" in name or "lm_head" in name else num_elements[name] // 2
        assert half[name] == expected, name


def test_the_bias_of_a_row_parallel_matrix_is_on_the_first_rank_alone(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama-biased")

    first, second = (load(folder, rank, 2).layers[0] for rank in range(2))

    assert first.feed_forward.weights.down.bias is not None
    assert first.attention.weights.output.bias is not None
    assert second.feed_forward.weights.down.bias is None
    assert second.attention.weights.output.bias is None
    assert second.attention.weights.qkv.bias is not None


def test_a_checkpoint_that_does_not_match_its_config_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())

    for changes, cause in (
        ({"num_hidden_layers": 4}, "lacks model.layers.3"),
        ({"num_hidden_layers": 2}, "unexpected model.layers.2"),
        ({"intermediate_size": 70}, "instead of"),
        ({"attention_bias": True}, "lacks .*q_proj.bias"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(InvalidModel, match=cause):
            load(folder, 0, 1)


def test_a_sharded_checkpoint_generates_like_a_whole_one(tmp_path: Path) -> None:
    whole = make_checkpoint(tmp_path / "whole", "llama")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_text((whole / "config.json").read_text())
    with Checkpoint(whole) as checkpoint:
        names = list(checkpoint._slices)
        tensors = {name: checkpoint.read(name) for name in names}
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(part, sharded / file)
    index = json.dumps({"weight_map": weight_map})
    (sharded / "model.safetensors.index.json").write_text(index)

    prompts = [[1, 2, 3, 4, 5]]

    assert generate_once(small_config(sharded), prompts, 8) == generate_once(
        small_config(whole), prompts, 8
    )
