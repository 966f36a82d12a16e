"""GET /openapi.json says what the application does, and no more."""

from collections.abc import Mapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from deployments.chat_schema import ChatFields
from deployments.completion_schema import CompletionFields
from deployments.neutral_fields import CHAT_NEUTRAL_FIELDS, COMPLETION_NEUTRAL_FIELDS, NeutralFields
from deployments.openai_schema import Fields
from deployments.tenant import ApiKey
from deployments.tokenize import DetokenizeFields, TokenizeChatFields, TokenizeTextFields
from tests.deployments.asgi_client import call
from tests.deployments.conftest import BuildApp

OPEN = {"/health", "/ready", "/metrics", "/version", "/openapi.json"}


def document(app: Starlette) -> dict[str, Any]:
    response = call(app, "/openapi.json")
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


def test_every_route_stands_in_the_document_and_nothing_else(app: Starlette) -> None:
    routes = {
        (route.path.replace(":path}", "}"), method)
        for route in app.routes
        if isinstance(route, Route)
        # Endpoints that are classes take what they find; Route says what that is.
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert len(routes) == len(app.routes)
    documented = {
        (path, method.upper()) for path, item in document(app)["paths"].items() for method in item
    }
    assert documented == routes


@pytest.mark.parametrize(
    ("kind", "neutral"),
    [
        (ChatFields, CHAT_NEUTRAL_FIELDS),
        (CompletionFields, COMPLETION_NEUTRAL_FIELDS),
        (TokenizeTextFields, {}),
        (TokenizeChatFields, {}),
        (DetokenizeFields, {}),
    ],
)
def test_every_field_stands_in_the_document_and_no_other_is_allowed(
    app: Starlette, kind: type[Fields], neutral: NeutralFields
) -> None:
    schema = document(app)["components"]["schemas"][kind.__name__]
    assert set(schema["properties"]) == {*kind.model_fields, *neutral}
    assert schema["additionalProperties"] is False


def test_bounds_are_those_of_the_sampler(app: Starlette) -> None:
    properties = document(app)["components"]["schemas"]["CompletionFields"]["properties"]
    number, null = properties["temperature"]["anyOf"]
    assert (number["minimum"], number["maximum"], null["type"]) == (0, 100, "null")
    assert properties["stop"]["anyOf"][1]["maxItems"] == 16
    assert properties["n"]["default"] == 1
    assert properties["echo"]["enum"] == [False, None]


def test_every_reference_leads_somewhere(app: Starlette) -> None:
    found = document(app)
    names = {f"#/components/schemas/{name}" for name in found["components"]["schemas"]}
    used = set(references(found))
    assert used <= names
    # Events have no place of their own in OpenAPI 3.1: what refers to them is prose.
    assert names - used == {
        "#/components/schemas/ChatCompletionChunk",
        "#/components/schemas/CompletionChunk",
    }


def references(value: object) -> list[str]:
    if isinstance(value, Mapping):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [name for item in value.values() for name in references(item)]
    if isinstance(value, list):
        return [name for item in value for name in references(item)]
    return []


def test_keys_are_asked_for_where_there_are_some(app: Starlette, build_app: BuildApp) -> None:
    assert "securitySchemes" not in document(app)["components"]
    assert not any("security" in operation for _, operation in operations(document(app)))
    guarded = document(build_app(api_keys=(ApiKey.of("sk-one"),)))
    assert guarded["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operation in operations(guarded):
        assert ("security" in operation) == ("401" in operation["responses"]) == (path not in OPEN)


def test_what_only_admins_see_says_so(build_app: BuildApp) -> None:
    guarded = document(build_app(api_keys=(ApiKey.of("sk-admin", admin=True),)))
    asking = {path for path, operation in operations(guarded) if "403" in operation["responses"]}
    assert asking == {"/metrics", "/status", "/status/why/{request_id}"}
    assert asking == {path for path, operation in operations(guarded) if "security" in operation}


def operations(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(path, each) for path, item in found["paths"].items() for each in item.values()]
