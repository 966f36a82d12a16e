"""The way to GGUF conversion: it alone needs the library `gguf`, which GPU images may lack."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import InvalidModel
from engine.progress import Report

CONVERSION_VERSION = 1
"""Raise it whenever a folder made from the same file would come out different."""


def convert_gguf(path: Path, folder: Path, report: Report | None = None) -> None:
    """Do what `gguf_conversion.convert_gguf` does; raises InvalidModel without the library too."""
    _load("convert_gguf")(path, folder, report=report)


def gguf_config(path: Path) -> dict[str, Any]:
    """Do what `gguf_conversion.gguf_config` does; raises InvalidModel without the library too."""
    config: dict[str, Any] = _load("gguf_config")(path)
    return config


def _load(name: str) -> Callable[..., Any]:
    try:
        from engine import gguf_conversion  # noqa: PLC0415  see above
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise InvalidModel(
            "Reading a GGUF file needs the Python package gguf, and it is not installed.",
            "Run pip install gguf, or give a folder with safetensors.",
        ) from error
    function: Callable[..., Any] = getattr(gguf_conversion, name)
    return function
