"""Find the model folder that a MODEL argument means, fetching or converting it when needed."""

import hashlib
import os
from pathlib import Path

from engine.embedded_model import ALIASES, embedded_model
from engine.errors import ModelNotFound
from engine.gguf_conversion import CONVERSION_VERSION, convert_gguf
from engine.hub_model import hub_model, is_hub_id
from engine.model_cache import ModelCache
from engine.model_folder import check_folder
from engine.progress import Report

DEFAULT_MODEL = "smollm2"
MAX_NAME_CHARS = 100
PATH_STARTS = ("/", "./", "../", "~")


def resolve_model(model: str, *, cache_dir: Path, report: Report | None = None) -> Path:
    """Return a folder with config.json, tokenizer.json and weights as safetensors.

    `model` is a folder, a GGUF file, the embedded default (`smollm2` or `SmolLM2-135M-Instruct`)
    or a hub id (`org/name`). `report(phase, done, total)` is called as long work goes on, with a
    total of 0 while that is unknown. Raises ModelNotFound or InvalidModel.
    """
    report = report or _ignore
    # Absolute paths throughout, because ranks run in other working directories.
    cache = ModelCache(cache_dir.absolute())
    if model.lower() in ALIASES:
        return embedded_model(cache, report=report)
    path = Path(os.path.expanduser(model)).absolute()
    if path.is_dir():
        return check_folder(path)
    if path.is_file():
        return _converted(path, cache, report)
    if model.startswith(PATH_STARTS) or path.suffix == ".gguf":
        raise ModelNotFound(
            f"There is no file or folder '{model}'.", "Check the path, or name a hub model."
        )
    if is_hub_id(model):
        return hub_model(model, report=report)
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
