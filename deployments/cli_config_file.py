"""Reads the file of `--config`: YAML with options by any of their names, without the dashes.

Its list `models`, which no option stands for, has the options of each model.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import typer
import yaml

from deployments.args import ModelArgs
from engine.errors import InvalidConfig

MODELS: Final = "models"
MODEL_OPTIONS: Final = ModelArgs.model_fields.keys() | {
    "model_id",
    "kv_cache_memory",
    "host_kv_memory",
    "replicas",
}
"""What an entry of the list may say; everything else is the endpoint's."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file with options."""

    path: Path
    values: Mapping[str, Any]
    """Of the whole file, as text, lists and mappings of text."""
    models: tuple[Mapping[str, Any], ...] = ()
    """Options of each model by the names that the command has for them, as texts or lists of them.
    """


def read_config_file(path: str) -> ConfigFile:
    """Read the file as it is. Raises InvalidConfig."""
    return ConfigFile(Path(path), _read(Path(path)))


def load_config_file(context: typer.Context, file: ConfigFile | None) -> ConfigFile | None:
    """Make the file's values the defaults of the command's options (callback of `--config`)."""
    if file is None:
        return None
    parameters = _parameters_by_name(context)
    values = dict(file.values)
    models = values.pop(MODELS, None)
    place = str(file.path)
    context.default_map = dict(_options(values, parameters, place))
    if models is None:
        return file
    if not isinstance(models, list) or not models:
        raise InvalidConfig(
            f"{place}: `{MODELS}` is no list of models.",
            "Give an entry for each, like `- model: a/b`.",
        )
    return replace(
        file,
        models=tuple(
            _read_model(entry, parameters, f"{place}: model {number}")
            for number, entry in enumerate(models, 1)
        ),
    )


def _read_model(entry: object, parameters: Mapping[str, Any], place: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise InvalidConfig(f"{place} is no mapping.", "Write one option a line: `model: a/b`.")
    own = {name: each for name, each in parameters.items() if each.name in MODEL_OPTIONS}
    for key in entry:
        if _normal(key) in parameters.keys() - own.keys():
            raise InvalidConfig(
                f"{place}: {key} belongs to the endpoint, not to a model.",
                f"Put it beside `{MODELS}:`.",
            )
    read = dict(_options(entry, own, place))
    if not read.keys() & {"model", "model_id"}:
        raise InvalidConfig(f"{place} does not say which.", "Add `model: NAME`.")
    return read


def _options(
    values: Mapping[str, Any], parameters: Mapping[str, Any], place: str
) -> Iterator[tuple[str, Any]]:
    """Name of each option, as the command has it, and its text or list of texts."""
    seen: dict[str, str] = {}
    for key, value in values.items():
        parameter = parameters.get(_normal(key))
        if parameter is None:
            raise _unknown_key(place, key, parameters)
        name = str(parameter.name)
        if name in seen:
            raise InvalidConfig(f"{place}: {seen[name]} and {key} are one option.", "Give it once.")
        seen[name] = key
        if getattr(parameter, "multiple", False):
            value = _listed(value)
            if not all(isinstance(each, str) for each in value):
                raise InvalidConfig(f"{place}: {key} is no list of values.", "Give a list.")
        elif not isinstance(value, str):
            raise InvalidConfig(f"{place}: {key} has more than one value.", "Give one value.")
        yield name, value


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):  # labels
        return [f"{name}={each}" if isinstance(each, str) else each for name, each in value.items()]
    return value if isinstance(value, list) else [value]


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


def _unknown_key(place: str, key: str, parameters: Mapping[str, Any]) -> InvalidConfig:
    close = difflib.get_close_matches(_normal(key), parameters, n=1)
    advice = f'Did you mean "{close[0]}"? ' if close else ""
    return InvalidConfig(
        f'{place}: there is no option "{key}".', f"{advice}`pageray serve --help` lists them."
    )
