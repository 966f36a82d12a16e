"""Reads the file of `--config`: YAML with options by any of their names, without the dashes."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml

from engine.errors import InvalidConfig


def load_config_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of the command's options (callback of `--config`)."""
    if path is not None:
        values = _read(path)
        parameters = _parameters_by_name(context)
        context.default_map = {}
        for key, value in values.items():
            parameter = parameters.get(_normal(key))
            if parameter is None:
                raise _unknown_key(path, key, parameters)
            is_list = getattr(parameter, "multiple", False)
            if is_list and not isinstance(value, list):
                value = [value]
            elif not is_list and not isinstance(value, str):
                raise InvalidConfig(f"{path}: {key} has more than one value.", "Give one value.")
            context.default_map[str(parameter.name)] = value
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        # Every scalar as text, as on a command line: YAML takes `replicas: 1:4` for 64.
        values = yaml.load(path.read_text(), yaml.BaseLoader)  # noqa: S506  makes only text
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidConfig(
            f"{path} cannot be read: {' '.join(str(error).split())}", "Give a YAML file."
        ) from error
    if values is None:  # an empty file
        return {}
    if not isinstance(values, dict):
        raise InvalidConfig(
            f"{path} holds no options.", "Write one option a line, like `max-num-seqs: 64`."
        )
    return values


def _parameters_by_name(context: typer.Context) -> dict[str, Any]:
    return {
        name: parameter
        for parameter in context.command.params
        if parameter.name not in ("config", "help")
        for name in _names(parameter)
    }


def _names(parameter: Any) -> Iterator[str]:
    for name in parameter.opts:
        yield _normal(name)


def _normal(name: str) -> str:
    return name.lstrip("-").replace("_", "-")


def _unknown_key(path: Path, key: str, parameters: dict[str, Any]) -> InvalidConfig:
    close = difflib.get_close_matches(_normal(key), parameters, n=1)
    advice = f'Did you mean "{close[0]}"? ' if close else ""
    return InvalidConfig(
        f'{path}: there is no option "{key}".', f"{advice}`pageray serve --help` lists them."
    )
