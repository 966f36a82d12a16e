"""Turns the options of the command line into settings of the application and of its start."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from deployments.args import AppArgs, ModelArgs
from deployments.cli_key_file import read_key_file
from deployments.cli_options import ServeOptions
from deployments.launch_options import EVERYWHERE, LaunchOptions
from deployments.tenant import ApiKey
from deployments.trace_export import TraceExport
from engine.errors import InvalidConfig

DTYPE_ALIASES = {"float": "float32", "half": "float16"}
"""vLLM's other words."""
SIZE_UNITS = {
    "": 1,
    **{f"{prefix}b": 1000**i for i, prefix in enumerate(("", "k", "m", "g", "t"))},
    **{f"{prefix}ib": 1024**i for i, prefix in enumerate(("k", "m", "g", "t"), start=1)},
}
SIZE = re.compile(r"\s*(\d+(?:\.\d*)?(?:e\+?\d{1,2})?)\s*([a-z]*)\s*", re.IGNORECASE)
REPLICAS = re.compile(r"\s*(\d+)(?:\s*:\s*(\d+))?\s*")


def app_args(options: ServeOptions) -> AppArgs:
    """What the application is built from. Raises InvalidConfig when options clash."""
    values = _same(options, AppArgs)
    values |= {
        "models": _models(options),
        "api_keys": _api_keys(options),
        "max_body_bytes": parse_size(options.max_body_size, "max-body-size"),
        "trace_export": _trace_export(options),
    }
    if options.cache_dir is None:
        del values["cache_dir"]
    with _explained():
        return AppArgs(**values)


def _trace_export(options: ServeOptions) -> TraceExport | None:
    if options.otlp_endpoint is None:
        return None
    with _explained():
        return TraceExport(
            endpoint=options.otlp_endpoint,
            service_name=options.otlp_service_name,
            sampling_ratio=options.trace_sampling_ratio,
        )


def _models(options: ServeOptions) -> list[ModelArgs]:
    file = options.config
    if file is None or not file.models:
        return [_model_args(options)]
    if not (options.model is options.model_id is options.served_model_name is None):
        raise InvalidConfig(
            f"A model is named beside the list of models in {file.path}.",
            "Name it in the list alone. Other options of a model are for all that do not say.",
        )
    models = []
    for number, entry in enumerate(file.models, 1):
        try:
            models.append(_model_args(replace(options, **_typed(entry))))
        except InvalidConfig as error:
            raise InvalidConfig(f"{file.path}: model {number}: {error.cause}", error.fix) from error
    return models


def _model_args(options: ServeOptions) -> ModelArgs:
    replicas_min, replicas_max = parse_replicas(options.replicas)
    values = _same(options, ModelArgs)
    values |= {
        "model": _model(options),
        "dtype": DTYPE_ALIASES.get(options.dtype, options.dtype),
        "preset": options.preset.replace("interactivity", "interactive"),
        "replicas_min": replicas_min,
        "replicas_max": replicas_max,
        "accelerator_labels": parse_labels(options.accelerator_labels or ()),
    }
    if options.kv_cache_memory is not None:
        values["kv_cache_bytes"] = parse_size(options.kv_cache_memory, "kv-cache-memory")
    if options.host_kv_memory is not None:
        values["host_kv_bytes"] = parse_size(options.host_kv_memory, "host-kv-memory")
    with _explained():
        return ModelArgs(**values)


def _typed(texts: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a file, of the types that the command has for them."""
    hints = get_type_hints(ServeOptions)
    values: dict[str, Any] = {}
    for name, text in texts.items():
        with _explained(name):
            values[name] = TypeAdapter(hints[name]).validate_python(text)
    return values


def _same(options: ServeOptions, kind: type[BaseModel]) -> dict[str, Any]:
    """Options that mean the same as arguments of their name."""
    return {name: getattr(options, name) for name in kind.model_fields if hasattr(options, name)}


@contextmanager
def _explained(*names: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        name = "-".join(map(str, names or first["loc"])).replace("_", "-")
        raise InvalidConfig(
            f"{name} is {first['input']!r}: {first['msg']}.",
            "Give a value that fits; `pageray serve --help` lists the options.",
        ) from error


def launch_options(options: ServeOptions) -> LaunchOptions:
    """Where and how to start it."""
    return LaunchOptions(
        host=options.host or default_host(joins_cluster=options.address is not None),
        port=options.port,
        address=options.address,
        dashboard=options.dashboard,
        verbose=options.verbose,
        log_format=options.log_format,
    )


def check_labels(args: AppArgs, start: LaunchOptions) -> None:
    """Refuse labels that no node can have: the start would wait for one for ever."""
    for model in args.models if start.address is None else ():
        for label, value in model.accelerator_labels.items():
            if not label.startswith("ray.io/") and not value.startswith("!"):
                raise InvalidConfig(
                    f"{model.model_name} is for nodes with the label {label}={value}, and the "
                    "cluster that is started here has none.",
                    "Join one whose nodes have it with --address, or leave the label out.",
                )


def default_host(*, joins_cluster: bool) -> str:
    """A start on one machine is for this machine, a cluster is for others too."""
    return EVERYWHERE if joins_cluster else "127.0.0.1"


def parse_size(text: str, option: str) -> int:
    """Bytes of `512MiB`, `2GiB`, `1.5GB`, `1e9` or `1000000`."""
    found = SIZE.fullmatch(text)
    unit = SIZE_UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise InvalidConfig(
            f'--{option}: "{text}" is no size.',
            "Give bytes, or a number with a unit: 512MiB, 2GiB, 1e9.",
        )
    return int(float(found[1]) * unit)


def parse_replicas(text: str) -> tuple[int, int]:
    """Fewest and most replicas of `2` or `1:4`."""
    found = REPLICAS.fullmatch(text)
    if found is None:
        raise InvalidConfig(
            f'--replicas: "{text}" is no number of replicas.',
            "Give a number, or MIN:MAX to scale with demand: --replicas 1:4.",
        )
    return int(found[1]), int(found[2] or found[1])


def parse_labels(pairs: Iterable[str]) -> dict[str, str]:
    """Labels of `gpu=h100` and the like."""
    labels: dict[str, str] = {}
    for pair in pairs:
        label, separator, value = pair.partition("=")
        if not separator:
            raise InvalidConfig(
                f'--accelerator-label: "{pair}" is no label with a value.',
                "Give both: --accelerator-label gpu=h100.",
            )
        if label in labels:
            raise InvalidConfig(
                f'--accelerator-label: "{label}" is given twice.',
                "Give it once; for one of several values: gpu=in(h100, h200).",
            )
        labels[label] = value
    return labels


def _api_keys(options: ServeOptions) -> tuple[ApiKey, ...]:
    keys = tuple(ApiKey.of(key) for key in options.api_key or ())
    keys += tuple(ApiKey.of(key, admin=True) for key in options.admin_key or ())
    if options.api_keys_file is None:
        return keys
    keys += read_key_file(options.api_keys_file)
    if all(key.admin for key in keys):
        raise InvalidConfig(
            f"{options.api_keys_file} has keys of admins alone, so anybody could generate.",
            "Add a client's key; if that is meant, give the admin's with --admin-key.",
        )
    return keys


def _model(options: ServeOptions) -> str:
    if options.model is not None and options.model_id not in (None, options.model):
        raise InvalidConfig(
            f'Two models are named: "{options.model}" and "{options.model_id}".',
            "Name one, as MODEL or with --model.",
        )
    model = options.model or options.model_id
    if model is None:
        return str(ModelArgs.model_fields["model"].default)
    # Ray's processes run in other folders.
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model
