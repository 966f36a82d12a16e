"""JSON schemas of request and answer bodies, made of what checks or describes them.

No field is named here: they are those of the pydantic models, of neutral_fields.py and, for
bounds, of engine/sampling_params.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deployments.neutral_fields import ANYTHING, NeutralFields
from deployments.openai_schema import Fields
from engine.sampling_params import BIAS_RANGE, LENGTHS, RANGES

Schema = dict[str, Any]

REF: Final = "#/components/schemas/"


def schemas_of(
    requests: Mapping[type[Fields], NeutralFields], answers: Sequence[type[BaseModel]]
) -> dict[str, Schema]:
    """Schemas of all of these and of what they consist of, by name.

    `requests` are bodies beside the fields that each allows at certain values only.
    """
    _, document = models_json_schema(
        [
            *((kind, "validation") for kind in requests),
            *((kind, "serialization") for kind in answers),
        ],
        ref_template=f"{REF}{{model}}",
    )
    schemas: dict[str, Schema] = document["$defs"]
    for kind, neutral in requests.items():
        _complete(schemas[kind.__name__], neutral)
    for schema in schemas.values():
        _drop_titles(schema)
    return schemas


def reference(kind: type[BaseModel]) -> Schema:
    """A schema that stands among the components."""
    return {"$ref": f"{REF}{kind.__name__}"}


def _complete(schema: Schema, neutral: NeutralFields) -> None:
    properties: dict[str, Schema] = schema["properties"]
    for name, field in properties.items():
        for form in _forms(field):
            _bound(name, form)
        if name not in schema.get("required", ()):
            properties[name] = _nullable(field)
    for name, allowed in neutral.items():
        properties[name] = _one_of(allowed)


def _forms(field: Schema) -> Iterator[Schema]:
    yield from field.get("anyOf", [field])


def _bound(name: str, form: Schema) -> None:
    if name in RANGES and form.get("type") in ("integer", "number"):
        form["minimum"], form["maximum"] = RANGES[name]
    if name in LENGTHS and form.get("type") == "array":
        form["maxItems"] = LENGTHS[name]
    if name in LENGTHS and form.get("type") == "object":
        form["maxProperties"] = LENGTHS[name]
        low, high = BIAS_RANGE
        form["additionalProperties"] |= {"minimum": low, "maximum": high}


def _nullable(field: Schema) -> Schema:
    """Null stands for the default everywhere."""
    if {"type": "null"} in field.get("anyOf", ()):
        return field
    outer: Schema = {name: field.pop(name) for name in ("default", "title") if name in field}
    forms = field.pop("anyOf", None) or [field]
    return {"anyOf": [*forms, {"type": "null"}], **outer}


def _one_of(allowed: tuple[Any, ...]) -> Schema:
    if ANYTHING in allowed:
        return {"description": "A label for the client's own use."}
    return {"enum": [*allowed, None]}


def _drop_titles(schema: Schema) -> None:
    """They repeat the names."""
    schema.pop("title", None)
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
