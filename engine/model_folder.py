"""Say whether a folder holds a model that can be loaded."""

import json
from pathlib import Path

from engine.errors import InvalidModel
from engine.safetensors_writer import INDEX_NAME

REQUIRED_FILES = ("config.json", "tokenizer.json")


def check_folder(folder: Path) -> Path:
    """Return the folder. Raises InvalidModel naming the files that are missing."""
    missing = missing_files(folder)
    if missing:
        raise InvalidModel(
            f"'{folder}' is no complete model folder: {', '.join(missing)} missing.",
            "A model folder holds config.json, tokenizer.json and the weights as safetensors.",
        )
    return folder


def missing_files(folder: Path) -> list[str]:
    """Return the names of the files that a model cannot do without and that are not there."""
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    index = folder / INDEX_NAME
    if index.is_file():
        shards = set(_weight_map(index).values())
        missing += sorted(name for name in shards if not (folder / name).is_file())
    elif not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    return missing


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise InvalidModel(
            f"'{index}' cannot be read ({error!r}).", "Fetch the model folder again."
        ) from error
    return weight_map
