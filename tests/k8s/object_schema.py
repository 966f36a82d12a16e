"""Checks objects against the schemas of their kinds, and refuses fields that these do not know."""

import json
from pathlib import Path
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped]  # ships no types
import kubernetes_validate  # type: ignore[import-untyped]  # likewise

from tests.k8s.render import Object, pods

SCHEMAS: Final = Path(__file__).parent / "schemas"
KUBERNETES: Final = "1.34"


def problems_of(item: Object) -> list[str]:
    """What is wrong with an object; of Ray's kinds with their pods, too."""
    if item["apiVersion"] != "ray.io/v1":
        return _built_in(item)
    schema = json.loads((SCHEMAS / f"{item['kind'].lower()}.json").read_text())
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(_pruned(item))
    ]
    return found or [problem for pod in pods(item) for problem in _built_in(pod)]


def _built_in(item: Object) -> list[str]:
    try:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{item['kind']} {'.'.join(map(str, error.path))}: {error.message}"]
    return []


def _pruned(value: Any) -> Any:
    """Without nulls, which API servers drop."""
    if isinstance(value, dict):
        return {key: _pruned(each) for key, each in value.items() if each is not None}
    return [_pruned(each) for each in value] if isinstance(value, list) else value
