"""Reading weights with threads, compared with reading them one by one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import InvalidModel
from engine.model_config import ModelConfig
from engine.models.decoder_weights import load_decoder
from engine.parallel import TensorParallel
from engine.safetensors_header import read_header
from engine.weight_reader import ParallelCheckpoint, open_weights
from engine.weights import Checkpoint
from kernels.weights import Packing
from tests.oracle import CHECKPOINTS, make_checkpoint

CPU = torch.device("cpu")
SHARES = [
    (slice(None), slice(None)),
    (slice(3, 30), slice(None)),
    (slice(None), slice(5, 11)),
    (slice(7, 37), slice(0, 1)),
    (slice(4, 4), slice(None)),
]


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {
        "odd": torch.randn(3).bfloat16(),  # what follows does not lie at a multiple of its size
        "a": torch.randn(37, 13),
        "b": torch.randn(37, 13).bfloat16(),
        "c": torch.randn(41).half(),
    }


def save(folder: Path) -> Path:
    save_file(tensors(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize(
    "device", [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)], ids=str
)
def test_shares_are_what_one_by_one_reading_gives(
    chunk_bytes: int, device: torch.device, tmp_path: Path
) -> None:
    save(tmp_path)
    with ParallelCheckpoint(tmp_path, device, chunk_bytes=chunk_bytes) as checkpoint:
        for name in ("a", "b"):
            for share in SHARES:
                found = checkpoint.read(name, *share)
                assert found.device.type == device.type
                assert torch.equal(found.cpu(), tensors()[name][share])
        for name in ("c", "odd"):
            for rows in (slice(None), slice(1, 3), slice(2, 2)):
                assert torch.equal(checkpoint.read(name, rows).cpu(), tensors()[name][rows])


def test_tensors_outlive_the_files_and_the_buffers(tmp_path: Path) -> None:
    save(tmp_path)
    with ParallelCheckpoint(tmp_path, CPU) as checkpoint:
        first, second = checkpoint.read("a"), checkpoint.read("b")
    (tmp_path / "model.safetensors").write_bytes(b"gone")

    assert torch.equal(first, tensors()["a"])
    assert torch.equal(second, tensors()["b"])


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({name: tensors()[name]}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in ("a", "b")}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with ParallelCheckpoint(tmp_path, CPU) as checkpoint:
        checkpoint.check({"a": (37, 13), "b": (37, 13)}, ())
        assert torch.equal(checkpoint.read("b"), tensors()["b"])


def test_what_does_not_match_the_config_is_named(tmp_path: Path) -> None:
    with ParallelCheckpoint(save(tmp_path), CPU) as checkpoint:
        checkpoint.check({"a": (37, 13), "b": (37, 13)}, ("c", "odd"))
        with pytest.raises(InvalidModel, match=r"a \[37, 13\] instead of \[13, 37\]"):
            checkpoint.check({"a": (13, 37), "b": (37, 13)}, ("c", "odd"))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_rank_of_every_architecture_gets_the_same_weights(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, name)
    model = ModelConfig.from_folder(folder)

    def load(checkpoint: Checkpoint | ParallelCheckpoint) -> list[Tensor]:
        with checkpoint:
            decoder = load_decoder(
                checkpoint, model, TensorParallel(1, 2), CPU, torch.float32, Packing.NONE
            )
        found = [decoder.embedding.weight, *decoder.head.weight.tensors]
        for layer in decoder.layers:
            found += layer.attention.weights.tensors + layer.feed_forward.weights.tensors
        return found

    found = load(ParallelCheckpoint(folder, CPU, chunk_bytes=999))
    expected = load(Checkpoint(folder))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_on_cpu_nothing_changes(tmp_path: Path) -> None:
    with open_weights(save(tmp_path), CPU) as weights:
        assert isinstance(weights, Checkpoint)


def test_without_pinned_memory_tensors_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("engine.weight_reader.ParallelCheckpoint", refuse)
    with open_weights(save(tmp_path), torch.device("cuda")) as weights:
        assert isinstance(weights, Checkpoint)


def broken(kind: str) -> bytes | None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    entries = {
        "wrong size": {**entry, "shape": [3]},
        "beyond the end": {**entry, "data_offsets": [8, 16]},
        "unknown dtype": {**entry, "dtype": "I4"},
        "no offsets": {"dtype": "F32", "shape": [2]},
    }
    if kind in entries:
        header = json.dumps({"a": entries[kind]}).encode()
        return len(header).to_bytes(8, "little") + header + bytes(8)
    return {"missing": None, "empty": b"", "text": b"not a tensor file" * 10}[kind]


@pytest.mark.parametrize(
    "kind",
    ["missing", "empty", "text", "wrong size", "beyond the end", "unknown dtype", "no offsets"],
)
def test_missing_and_broken_files_are_refused(kind: str, tmp_path: Path) -> None:
    content = broken(kind)
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidModel, match=r"model\.safetensors"):
        ParallelCheckpoint(tmp_path, CPU)


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path) / "model.safetensors"
    with ParallelCheckpoint(tmp_path, CPU, chunk_bytes=100) as checkpoint:
        place = read_header(path)["b"]
        with path.open("r+b") as file:
            file.truncate(place.offset + 200)
        with pytest.raises(InvalidModel, match="cut short"):
            checkpoint.read("b")


def test_scalars_are_read_as_scalars(tmp_path: Path) -> None:
    scale = torch.tensor(0.25)
    save_file({"scale": scale, "a": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    with ParallelCheckpoint(tmp_path, CPU) as checkpoint, Checkpoint(tmp_path) as plain:
        for source in (checkpoint, plain):
            source.check({"scale": (1,), "a": (2, 3)}, ignored=())
            assert torch.equal(source.read("scale"), scale)
