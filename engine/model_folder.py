"""Say whether a folder holds a model that can be loaded; read its JSON files."""

import json
from pathlib import Path
from typing import Any

from engine.errors import InvalidModel
from engine.safetensors_writer import INDEX_NAME

CONFIG_NAME = "config.json"
TOKENIZER_NAME = "tokenizer.json"


def check_folder(folder: Path, *, needs_weights: bool = True) -> Path:
    """Return the folder. Raises InvalidModel naming the files that are missing.

    Without need of weights, config.json is enough.
    """
    missing = missing_files(folder, needs_weights=needs_weights)
    if missing:
        raise InvalidModel(
            f"'{folder}' is no complete model folder: {', '.join(missing)} missing.",
            "A model folder holds config.json, tokenizer.json and the weights as safetensors.",
        )
    return folder


def missing_files(folder: Path, *, needs_weights: bool = True) -> list[str]:
    """Return the names of the files that a model cannot do without and that are not there."""
    required = (CONFIG_NAME, TOKENIZER_NAME) if needs_weights else (CONFIG_NAME,)
    missing = [name for name in required if not (folder / name).is_file()]
    if not needs_weights:
        return missing
    index = folder / INDEX_NAME
    if index.is_file():
        shards = set(_weight_map(index).values())
        missing += sorted(name for name in shards if not (folder / name).is_file())
    elif not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    return missing


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file of a model folder holds. Raises InvalidModel."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidModel(
            f"{path.parent} has no {path.name}.", "Give a folder that holds a Hugging Face model."
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{path} cannot be read: {error}.", "Fetch the model again.") from error
    if not isinstance(content, dict):
        raise InvalidModel(f"{path} holds no JSON object.", "Fetch the model again.")
    return content


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise InvalidModel(
            f"'{index}' cannot be read ({error!r}).", "Fetch the model folder again."
        ) from error
    return weight_map
