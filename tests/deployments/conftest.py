"""Fixtures: a tiny tokenizer, applications on a fake token source, and the command line."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette

from deployments import cli
from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from deployments.served_model import ServedModel
from engine.tokenizer import Tokenizer
from tests.deployments.command_line import Launches, Run
from tests.deployments.fake_token_source import FakeTokenSource
from tests.deployments.scripted_service import ScriptedService, listening
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
    """Build an application on `source`; keywords are fields of HttpSettings and of the model."""

    def build(
        *,
        max_model_len: int = 512,
        aliases: Sequence[str] = (),
        may_sleep: bool = False,
        **fields: object,
    ) -> Starlette:
        model = ServedModel(
            "tiny",
            max_model_len=max_model_len,
            tokenizer=tokenizer,
            source=source,
            aliases=aliases,
            may_sleep=may_sleep,
        )
        values = {"version": "1.2.3", **fields}
        return build_http_app([model], HttpSettings(**values))  # type: ignore[arg-type]

    return build


@pytest.fixture
def app(build_app: BuildApp) -> Starlette:
    """An application with default settings."""
    return build_app()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `pageray` with the given words: exit code, standard output, standard error."""
    names = ("PAGERAY_CACHE", "PAGERAY_API_KEY", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "100"}
    monkeypatch.setattr(os, "environ", environment)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pageray", *words])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr()
        code = exit_info.value.code
        return code if isinstance(code, int) else 0, output.out, output.err

    return run


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    launches = Launches()
    launch = SimpleNamespace(
        serve_until_interrupted=launches.serve_until_interrupted,
        serving=launches.serving,
    )
    monkeypatch.setitem(sys.modules, "deployments.launch", launch)
    monkeypatch.setitem(sys.modules, "deployments.cli_pull", SimpleNamespace(pull=launches.pull))
    return launches


@pytest.fixture
def service() -> ScriptedService:
    """Answers as the test tells it."""
    return ScriptedService()


@pytest.fixture
def url(service: ScriptedService) -> Iterator[str]:
    """Where that service listens."""
    with listening(service.app) as url:
        yield url
