"""resolve_model: every form of MODEL leads to a folder, or to an error that says what to do."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, errors
from tokenizers import Tokenizer as Backend

from engine import hub_model
from engine.errors import InvalidModel, ModelNotFound
from engine.model_store import resolve_config, resolve_model
from tests.engine.gguf_checkpoint import random_model, write_gguf


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (path / name).write_text("{}")
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the hub by one that has nothing and notes what it was asked."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(model: str, **options: Any) -> str:
        calls.append({"model": model, **options})
        raise errors.LocalEntryNotFoundError("no")

    monkeypatch.setattr(hub_model, "snapshot_download", snapshot_download)
    return calls


def test_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "org" / "model")
    assert resolve_model(str(folder), cache_dir=tmp_path / "cache") == folder
    # Relative too, even if it looks like a hub id; but absolute for whoever runs elsewhere.
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/model", cache_dir=tmp_path / "cache") == folder
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_folder_that_lacks_a_file_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / name).unlink()
    missing = "*.safetensors" if name == "model.safetensors" else name
    with pytest.raises(InvalidModel) as error:
        resolve_model(str(folder), cache_dir=tmp_path)
    assert missing in error.value.cause


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    index = '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InvalidModel, match=r": model-2\.safetensors missing"):
        resolve_model(str(folder), cache_dir=tmp_path)


def test_gguf_file_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = write_gguf(random_model("llama"), tmp_path / "m.gguf")
    folder = resolve_model(str(path), cache_dir=tmp_path / "cache")
    assert Backend.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 288
    written = (folder / "config.json").stat().st_ino

    assert resolve_model(str(path), cache_dir=tmp_path / "cache") == folder
    assert (folder / "config.json").stat().st_ino == written

    os.utime(path, ns=(1, 1))
    assert resolve_model(str(path), cache_dir=tmp_path / "cache") == folder
    assert (folder / "config.json").stat().st_ino != written


def test_gguf_files_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    folders = set()
    for kind in ("llama", "qwen3"):
        (tmp_path / kind).mkdir()
        path = write_gguf(random_model(kind), tmp_path / kind / "m.gguf")
        folders.add(resolve_model(str(path), cache_dir=tmp_path / "cache"))
    assert len(folders) == 2


def test_file_that_is_no_gguf_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("not a model")
    with pytest.raises(InvalidModel, match="does not start with GGUF"):
        resolve_model(str(tmp_path / "m.gguf"), cache_dir=tmp_path / "cache")
    left = [p for p in (tmp_path / "cache" / "models").iterdir() if p.suffix != ".lock"]
    assert left == []


@pytest.mark.parametrize(
    "model", ["./nothing", "/nothing/here", "~/nothing", "~nobody", "nothing.gguf"]
)
def test_path_that_does_not_exist_is_not_looked_for_on_the_hub(
    model: str, tmp_path: Path, hub: list[dict[str, Any]]
) -> None:
    with pytest.raises(ModelNotFound, match="no file or folder"):
        resolve_model(model, cache_dir=tmp_path)
    assert hub == []


@pytest.mark.parametrize("model", ["gpt5", "a/b/c", "org/na me"])
def test_unknown_name_tells_what_names_there_are(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: list[dict[str, Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match=r"\n.*folder.*GGUF.*hub id.*'smollm2'"):
        resolve_model(model, cache_dir=tmp_path)
    assert hub == []


def test_hub_id_goes_to_the_hub_even_if_it_names_the_embedded_model(
    tmp_path: Path, hub: list[dict[str, Any]]
) -> None:
    with pytest.raises(ModelNotFound):
        resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct", cache_dir=tmp_path)
    assert [call["model"] for call in hub] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]


class Response:
    """As much of a response as the hub's errors want."""

    status_code = 404
    headers: dict[str, str] = {}  # noqa: RUF012  never changed
    request = None


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "cause", "fix"),
    [
        (errors.RepositoryNotFoundError("404", response=Response()), "no model 'a/b'", "name"),  # type: ignore[arg-type]
        (errors.GatedRepoError("403", response=Response()), "accepted its terms", "/a/b"),  # type: ignore[arg-type]
        (
            caused_by(errors.LocalEntryNotFoundError("x"), errors.OfflineModeIsEnabled("off")),
            "HF_HUB_OFFLINE forbids",
            "Unset HF_HUB_OFFLINE",
        ),
        (
            caused_by(errors.LocalEntryNotFoundError("x"), ConnectionError("Name not known")),
            "cannot be reached.*Name not known",
            "Check the network",
        ),
        (OSError(28, "No space left on device"), "No space left", "Try again"),
    ],
)
def test_error_of_the_hub_says_cause_and_fix(
    error: Exception, cause: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(hub_model, "snapshot_download", fail)
    with pytest.raises(ModelNotFound, match=cause) as caught:
        resolve_model("a/b", cache_dir=tmp_path)
    assert fix in caught.value.fix


def test_offline_hub_serves_its_cache_and_refuses_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's real client, on a cache as it leaves it.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--name"
    folder = model_folder(repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert resolve_model("org/name", cache_dir=tmp_path / "cache") == folder
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE forbids"):
        resolve_model("org/other", cache_dir=tmp_path / "cache")


def test_bytes_of_a_hub_download_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "snapshot")
    seen: list[tuple[str, int, int]] = []

    def download(model: str, **options: Any) -> str:
        bar = options["tqdm_class"]
        files = bar(desc="Fetching 3 files", total=3)
        transferred = bar(desc="Downloading bytes", total=0, unit="B", unit_scale=True)
        written = bar(desc="Reconstructing", total=0, unit="B", unit_scale=True)
        files.update(1)
        written.total = 100
        written.update(40)
        transferred.update(10)
        written.update(60)
        for progress in (files, transferred, written):
            progress.close()
        return str(folder)

    monkeypatch.setattr(hub_model, "snapshot_download", download)
    result = resolve_model("a/b", cache_dir=tmp_path, report=lambda *step: seen.append(step))
    assert result == folder
    phase = "Downloading a/b"
    assert seen == [(phase, 40, 100), (phase, 40, 100), (phase, 100, 100)]


def test_without_need_of_weights_a_config_is_enough(
    tmp_path: Path, hub: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    with pytest.raises(InvalidModel, match=r"config\.json missing"):
        resolve_model(str(folder), cache_dir=tmp_path, needs_weights=False)
    (folder / "config.json").write_text("{}")
    assert resolve_model(str(folder), cache_dir=tmp_path, needs_weights=False) == folder

    for needs_weights in (True, False):
        with pytest.raises(ModelNotFound):
            resolve_model("org/name", cache_dir=tmp_path, needs_weights=needs_weights)
    patterns = [call["allow_patterns"] for call in hub]
    assert ["*.safetensors" in names for names in patterns] == [True, False]
    assert all("*.json" in names for names in patterns)


def test_config_is_found_without_the_rest(tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    (tmp_path / "config.json").write_text('{"vocab_size": 7}')
    assert resolve_config(str(tmp_path), cache_dir=cache_dir) == {"vocab_size": 7}

    path = write_gguf(random_model("qwen3"), tmp_path / "m.gguf")
    config = resolve_config(str(path), cache_dir=cache_dir)
    assert not cache_dir.exists()
    converted = resolve_model(str(path), cache_dir=cache_dir)
    assert config == json.loads((converted / "config.json").read_text())

    with pytest.raises(ModelNotFound, match="no file or folder"):
        resolve_config("./nothing", cache_dir=cache_dir)
    with pytest.raises(ModelNotFound, match="no model 'gpt5'"):
        resolve_config("gpt5", cache_dir=cache_dir)


def test_config_of_a_hub_model_comes_alone_or_with_the_hubs_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 7}')
    monkeypatch.setattr(hub_model, "hf_hub_download", lambda _model, name, **_: tmp_path / name)
    assert resolve_config("a/b", cache_dir=tmp_path) == {"vocab_size": 7}

    def refuse(_model: str, _name: str, **_: object) -> str:
        raise errors.EntryNotFoundError("404")

    monkeypatch.setattr(hub_model, "hf_hub_download", refuse)
    with pytest.raises(ModelNotFound, match=r"'a/b' on the hub has no config\.json"):
        resolve_config("a/b", cache_dir=tmp_path)
