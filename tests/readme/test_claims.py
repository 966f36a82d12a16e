"""What README names is there: options and their defaults, endpoints, files, overlays, numbers."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from starlette.routing import Route
from typer.testing import CliRunner

from deployments.cli import DEFAULT_URL, app
from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from tests.k8s.render import OVERLAYS
from tests.readme.command_check import PLACEHOLDERS
from tests.readme.document import ROOT, Row, readme, spans_of

GROUP: Any = typer.main.get_command(app)
OPTIONS = {
    name: parameter
    for command in reversed(GROUP.commands.values())  # of two alike that of `serve` counts
    for parameter in command.params
    for name in [*parameter.opts, *parameter.secondary_opts]
    if name.startswith("-")
}
SERVE = {name for parameter in GROUP.commands["serve"].params for name in parameter.opts}
UNITS = {"million": 1 << 20, "s": 1, "": 1}
FOLDERS = "kernels|engine|cluster|deployments|tests|k8s"
PATHS = [
    word for word in spans_of((ROOT / "README.md").read_text()) if re.match(rf"({FOLDERS})/", word)
]
MODULES = [
    span.text for span in readme().spans if re.fullmatch(r"[\w/]+\.(py|yaml|csv)", span.text)
]
URL_PATHS = [span.text for span in readme().spans if re.fullmatch(r"/[a-zA-Z0-9_./-]+", span.text)]
FLAGS = [span.text for span in readme().spans if span.text.startswith("--")]


def parsed(text: str) -> dict[str, Any]:
    """What `pageray serve` makes of options."""
    words = [PLACEHOLDERS.get(word, word) for word in text.split()]
    params: dict[str, Any] = GROUP.commands["serve"].make_context("serve", words).params
    return params


def test_help_lists_every_option() -> None:
    text = CliRunner().invoke(app, ["serve", "--help"]).stdout
    named = {name for flag in FLAGS for name in re.findall(r"--[\w-]+", flag)}
    assert named & SERVE, "there are some"
    for name in named & SERVE:
        assert re.search(rf"(^|[\s,]){name}\b", text, re.M), name


@pytest.mark.parametrize("flags", sorted(set(FLAGS)))
def test_an_option_is_one_of_ours(flags: str) -> None:
    benchmarks = "".join(path.read_text() for path in (ROOT / "tests/benchmarks").rglob("*.py"))
    for name in re.findall(r"--[\w-]+", flags):
        known = name in OPTIONS or f'add_argument("{name}"' in benchmarks
        assert known, f"README names {name}, which no command has"


OPTION_ROWS = [row for row in readme().table("option") if "--" in row.cells[0]]


@pytest.mark.parametrize("row", OPTION_ROWS, ids=lambda row: row.cells[0])
def test_an_option_of_the_tables_is_one_of_serve_with_that_default(row: Row) -> None:
    flags = spans_of(row.cells[0])
    assert flags
    for flag in flags:
        name, _, given = flag.partition(" ")
        assert name in SERVE
        if given or OPTIONS[name].is_flag:
            parsed(flag)
        if f"`{flag}` (default)" in row.cells[0]:
            assert OPTIONS[name].default == given
    numbers = re.search(r"\(([\d, a-z]+)\)$", row.cells[1])
    if len(flags) > 1 and numbers:
        for flag, number in zip(flags, numbers[1].split(", "), strict=True):
            count, _, unit = number.partition(" ")
            assert OPTIONS[flag].default == float(count) * UNITS[unit]


def routes() -> list[Route]:
    return [each for each in build_http_app([], HttpSettings()).routes if isinstance(each, Route)]


@pytest.mark.parametrize("path", sorted(set(URL_PATHS)))
def test_an_endpoint_is_a_route(path: str) -> None:
    assert any(route.path_regex.match(path) for route in routes()), f"nothing is at {path}"


def test_every_route_is_named() -> None:
    missing = [
        route.path
        for route in routes()
        if not any(route.path_regex.match(path) for path in URL_PATHS)
        and not route.path.startswith("/v1/models/")
    ]
    assert not missing, f"README's Endpoints lack {missing}"


@pytest.mark.parametrize("path", sorted(set(PATHS)))
def test_a_path_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(MODULES)))
def test_a_module_is_there_once(name: str) -> None:
    """So that a name without its folder leads to one file; configs of overlays are many."""
    folders = [ROOT / folder for folder in FOLDERS.split("|")]
    found = [path for folder in folders for path in folder.rglob(Path(name).name)]
    here = [path for path in found if str(path).endswith(f"/{name}")]
    sources = [path for path in here if "tests" not in path.relative_to(ROOT).parts]
    assert here
    if name.endswith(".py") and "/" not in name:
        assert len(sources or here) == 1


def test_the_table_of_overlays_is_that_of_the_folder() -> None:
    named = [span for row in readme().table("overlay") for span in spans_of(row.cells[0])]
    assert sorted(named) == OVERLAYS


def test_the_table_of_commands_is_that_of_the_command_line() -> None:
    named = [
        span.split()[1] for row in readme().table("command") for span in spans_of(row.cells[0])
    ]
    assert sorted(named) == sorted(GROUP.commands)


def test_everything_listens_where_the_readme_asks() -> None:
    assert OPTIONS["--port"].default == 8000
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"localhost:(\d+)", text)) == {"8000"}
    assert DEFAULT_URL.endswith(":8000")
