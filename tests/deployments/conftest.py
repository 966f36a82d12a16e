"""Fixtures of the HTTP tests: a tiny tokenizer and applications on a fake token source."""

from collections.abc import Callable

import pytest
from starlette.applications import Starlette

from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from engine.tokenizer import Tokenizer
from tests.deployments.fake_token_source import FakeTokenSource
from tests.deployments.tiny_tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level, 320 tokens."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def source(tokenizer: Tokenizer) -> FakeTokenSource:
    """Says that Paris is the capital of France."""
    return FakeTokenSource(tokenizer)


BuildApp = Callable[..., Starlette]


@pytest.fixture
def build_app(source: FakeTokenSource, tokenizer: Tokenizer) -> BuildApp:
    """Build an application on `source`; keywords are fields of HttpSettings."""

    def build(**fields: object) -> Starlette:
        values = {"model_name": "tiny", "max_model_len": 512, "version": "1.2.3", **fields}
        return build_http_app(source, tokenizer, HttpSettings(**values))  # type: ignore[arg-type]

    return build


@pytest.fixture
def app(build_app: BuildApp) -> Starlette:
    """An application with default settings."""
    return build_app()
