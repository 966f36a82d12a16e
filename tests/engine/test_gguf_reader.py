"""GgufFile against the reader of the gguf package, and against broken files."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("gguf", reason="gguf is not installed here")

import gguf
from gguf import GGMLQuantizationType as QuantType

from engine.errors import InvalidModel
from engine.gguf_reader import GgufFile
from tests.engine.gguf_checkpoint import random_model, write_gguf

METADATA = {
    "test.text": "naïve ☃",
    "test.flag": True,
    "test.number": 17,
    "test.epsilon": 1e-05,
    "test.list": [3, 1, 2],
    "test.strings": ["a", "", "☃"],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(random_model("llama"), folder / "a.gguf", QuantType.Q8_0, extra=METADATA)


def test_metadata_is_what_the_gguf_package_reads(path: Path) -> None:
    metadata = GgufFile.open(path).metadata
    fields = gguf.GGUFReader(path).fields
    expected = {name: field.contents() for name, field in fields.items()}
    assert set(metadata) == {name for name in expected if not name.startswith("GGUF.")}
    for name, value in metadata.items():
        if isinstance(value, float):
            assert np.float32(value) == np.float32(expected[name])
        else:
            assert value == expected[name], name


def test_float_metadata_is_the_short_decimal_a_config_would_have(path: Path) -> None:
    assert GgufFile.open(path).metadata["test.epsilon"] == 1e-05


def test_tensors_are_what_the_gguf_package_reads(path: Path) -> None:
    tensors = GgufFile.open(path).tensors
    expected = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert list(tensors) == list(expected)
    for name, tensor in tensors.items():
        assert tensor.quant_type == expected[name].tensor_type
        assert tensor.shape == tuple(int(size) for size in expected[name].shape[::-1])
        assert tensor.rows.tobytes() == expected[name].data.tobytes()


def test_file_cut_short_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for size in [0, 3, 4, 7, 8, 20, 24, 100, len(whole) // 2, len(whole) - 1]:
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(InvalidModel, match=r"cut\.gguf"):
            GgufFile.open(tmp_path / "cut.gguf")


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 600), byte=st.integers(0, 255))
def test_broken_header_is_refused_or_read_but_never_crashes(
    path: Path, tmp_path: Path, position: int, byte: int
) -> None:
    content = bytearray(path.read_bytes())
    content[position] = byte
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    with contextlib.suppress(InvalidModel):
        GgufFile.open(broken)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"PK\x03\x04 no model at all", "does not start with GGUF"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(16), "has GGUF version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(16), "has GGUF version 50331648"),
    ],
)
def test_other_file_is_refused_with_its_cause(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(InvalidModel, match=cause):
        GgufFile.open(tmp_path / "x.gguf")


def test_model_in_parts_is_read_whole_from_any_of_them(path: Path, tmp_path: Path) -> None:
    names = [f"m-{part:05}-of-00002.gguf" for part in (1, 2)]
    shutil.copy(path, tmp_path / names[0])
    writer = gguf.GGUFWriter(tmp_path / names[1], "other")
    writer.add_tensor("extra.weight", np.ones((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name in names:
        file = GgufFile.open(tmp_path / name)
        assert file.metadata["general.architecture"] == "llama"
        assert file.tensors["extra.weight"].shape == (2, 3)
        assert "token_embd.weight" in file.tensors


def test_missing_part_is_named(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(InvalidModel, match=r"m-00002-of-00002\.gguf"):
        GgufFile.open(tmp_path / "m-00001-of-00002.gguf")
