"""Schemathesis holds the application against its own OpenAPI document.

It makes requests that fit the document and such that do not, the same ones in every run.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from deployments.openapi_document import build_document
from deployments.served_model import ServedModel
from deployments.tenant import ApiKey
from tests.deployments.asgi_client import call
from tests.deployments.fake_token_source import FakeTokenSource
from tests.deployments.tiny_tokenizer import make_tokenizer

pytestmark = pytest.mark.slow

KEY = "sk-one"
SETTINGS = HttpSettings(api_keys=(ApiKey.of(KEY),))
CONFIG = SchemathesisConfig.from_dict(
    {"seed": 1, "generation": {"deterministic": True, "max-examples": 25}}
)


class LateApp:
    """The application, which is not there yet when pytest asks for what there is to test."""

    def __init__(self) -> None:
        self.inner: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        assert self.inner is not None
        await self.inner(scope, receive, send)


APP = LateApp()
DOCUMENT = schemathesis.openapi.from_dict(build_document(SETTINGS), config=CONFIG)
DOCUMENT.app = APP


def chunk_validator(name: str) -> Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return Draft202012Validator({**schema, "components": build_document(SETTINGS)["components"]})


CHUNKS = {
    "/v1/chat/completions": chunk_validator("ChatCompletionChunk"),
    "/v1/completions": chunk_validator("CompletionChunk"),
}


Statuses = dict[str, set[int]]


@pytest.fixture(scope="module")
def statuses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Statuses]:
    """Statuses of the answers that each operation gave, from when the application is there."""
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    source = FakeTokenSource(tokenizer, "Yes.")
    model = ServedModel("tiny", max_model_len=512, tokenizer=tokenizer, source=source)
    APP.inner = build_http_app([model], SETTINGS)
    seen: Statuses = defaultdict(set)
    yield seen
    for operation, found in seen.items():
        # Else what was sent does not get far enough to find anything.
        assert found >= ({200, 400, 401} if operation.startswith("POST") else {405}), operation


@DOCUMENT.parametrize()
def test_answers_are_as_the_document_says(statuses: Statuses, case: schemathesis.Case[Any]) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    response = case.call(headers=headers)
    statuses[case.operation.label].add(response.status_code)
    # What fits the document may still be too long for the model, or contradict itself.
    too_much: Any = CHECKS.get_one("positive_data_acceptance")
    case.validate_response(response, headers=headers, excluded_checks=[too_much])
    [content_type] = response.headers["content-type"]
    if content_type.startswith("text/event-stream"):
        *events, done, rest = response.content.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        for event in events:
            CHUNKS[case.path].validate(json.loads(event.removeprefix("data: ")))


def test_the_document_is_the_one_that_is_served(statuses: Statuses) -> None:
    assert call(APP, "/openapi.json").json() == build_document(SETTINGS)


@pytest.mark.parametrize("path", list(CHUNKS))
def test_a_chunk_is_not_everything(path: str) -> None:
    assert not CHUNKS[path].is_valid({"object": "error"})
