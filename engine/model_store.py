"""Find the model folder that a MODEL argument means, fetching or converting it when needed."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from engine.embedded_model import ALIASES, embedded_model
from engine.errors import ModelNotFound
from engine.gguf_import import CONVERSION_VERSION, convert_gguf, gguf_config
from engine.model_cache import ModelCache
from engine.model_folder import CONFIG_NAME, check_folder, read_json
from engine.progress import Report

DEFAULT_MODEL = "smollm2"
MAX_NAME_CHARS = 100
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PATH_STARTS = ("/", "./", "../", "~")


def resolve_model(
    model: str, *, cache_dir: Path, report: Report | None = None, needs_weights: bool = True
) -> Path:
    """Return a folder with config.json, tokenizer.json and weights as safetensors.

    Args:
        model: a folder, a GGUF file, the embedded default (`smollm2` or `SmolLM2-135M-Instruct`)
            or a hub id (`org/name`).
        cache_dir: where fetched and converted models are kept.
        report: called as `report(phase, done, total)` as long work goes on, with a total of 0
            while that is unknown.
        needs_weights: False: a folder that has config.json will do, and weights are not fetched
            where they can be left out.

    Raises ModelNotFound or InvalidModel.
    """
    report = report or _ignore
    # Absolute paths throughout, because ranks run in other working directories.
    cache = ModelCache(cache_dir.absolute())
    if model.lower() in ALIASES:
        return embedded_model(cache, report=report)
    path = _path(model)
    if path.is_dir():
        return check_folder(path, needs_weights=needs_weights)
    if path.is_file():
        return _converted(path, cache, report)
    _check_hub_id(model, path)
    from engine.hub_model import hub_model  # noqa: PLC0415  its client is slow to import

    return hub_model(model, report=report, needs_weights=needs_weights)


def resolve_config(model: str, *, cache_dir: Path, report: Report | None = None) -> dict[str, Any]:
    """Return what the model's config.json holds, and fetch or read as little else as possible.

    Of a hub model that is nothing, of a GGUF file its header; the embedded default comes whole.
    Arguments and errors as for `resolve_model`.
    """
    if model.lower() in ALIASES:
        folder = resolve_model(model, cache_dir=cache_dir, report=report)
        return read_json(folder / CONFIG_NAME)
    path = _path(model)
    if path.is_dir():
        return read_json(path / CONFIG_NAME)
    if path.is_file():
        return gguf_config(path)
    _check_hub_id(model, path)
    from engine.hub_model import hub_config  # noqa: PLC0415  as above

    return read_json(hub_config(model, report=report or _ignore))


def _path(model: str) -> Path:
    return Path(os.path.expanduser(model)).absolute()


def _check_hub_id(model: str, path: Path) -> None:
    """Raise ModelNotFound unless the name, which is that of no path, can be one on the hub."""
    if model.startswith(PATH_STARTS) or path.suffix == ".gguf":
        raise ModelNotFound(
            f"There is no file or folder '{model}'.", "Check the path, or name a hub model."
        )
    if HUB_ID.fullmatch(model) is None:
        raise ModelNotFound(
            f"There is no model '{model}'.",
            f"Name a folder, a GGUF file, a hub id (org/name) or '{DEFAULT_MODEL}'.",
        )


def _converted(path: Path, cache: ModelCache, report: Report) -> Path:
    """Return the folder made from a GGUF file, which is made again when the file changes."""
    status = path.stat()
    source: dict[str, str | int] = {
        "path": str(path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "conversion": CONVERSION_VERSION,
    }

    def build(folder: Path, _scratch: Path) -> None:
        convert_gguf(path, folder, report=report)

    # Files of one name from different folders must not replace each other.
    tag = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return cache.get(f"{path.stem[:MAX_NAME_CHARS]}-{tag}", source, build, report=report)


def _ignore(phase: str, done: int, total: int) -> None:
    """Report to nobody."""
