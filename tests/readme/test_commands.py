"""Every command that README has is taken by its program and run by a test."""

import ast
import re
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import typer

from engine.errors import PageRayError
from tests.readme.command_check import check
from tests.readme.document import ROOT, Code, Command, Document, readme
from tests.readme.runs import RUN_BY, RUN_BY_NONE

COMMANDS = readme().commands()
UsageError = typer.BadParameter.__mro__[1]
KNOWN = [*RUN_BY, *RUN_BY_NONE]


def name_of(block: Code) -> str:
    """What `RUN_BY` calls a block that is no shell."""
    return f"{block.language}: {block.text.splitlines()[0].partition(' #')[0].rstrip()}"


def matches(text: str, known: str) -> bool:
    # Brackets are README's own; only the star is a pattern.
    return fnmatchcase(text, known.replace("[", "[[]"))


def unknown(document: Document, known: Iterable[str]) -> list[str]:
    """What nobody said of which test runs it, with what to do."""
    found = [(command.text, command.line) for command in document.commands()]
    found += [(name_of(block), block.line) for block in document.files()]
    known = list(known)
    return [
        f"README.md:{line}: no test is known to run `{text}`. Name the one that does in RUN_BY of "
        "tests/readme/runs.py (write it where there is none), or say in RUN_BY_NONE why none can."
        for text, line in found
        if not any(matches(text, each) for each in known)
    ]


def test_every_command_is_run_by_a_test() -> None:
    assert not unknown(readme(), KNOWN), "\n".join(unknown(readme(), KNOWN))


def test_a_new_command_is_noticed_wherever_it_stands() -> None:
    text = "Use `pageray frob`.\n\n    pageray frob 1  # one\n\n"
    text += "```\npageray frob \\\n  2\nnew x\n```\n\n```yaml\na: 1\n```\n"
    lines = unknown(Document.parse(text), KNOWN)
    assert [re.findall(r"^README.md:(\d+): .* `(.+?)`\. Name", line)[0] for line in lines] == [
        ("1", "pageray frob"),
        ("3", "pageray frob 1"),
        ("7", "pageray frob 2"),
        ("8", "new x"),
        ("11", "yaml: a: 1"),
    ]


@pytest.mark.parametrize("known", KNOWN)
def test_what_is_known_stands_in_the_readme(known: str) -> None:
    texts = [command.text for command in COMMANDS] + [name_of(b) for b in readme().files()]
    assert any(matches(text, known) for text in texts), f"README has no {known}: take it out"


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_the_test_is_there(test: str) -> None:
    file, name = test.split("::")
    module = ast.parse((ROOT / file).read_text())
    tests = [each.name for each in module.body if isinstance(each, ast.FunctionDef)]
    assert any(fnmatchcase(each, name) for each in tests if each.startswith("test_"))


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_the_program_takes_its_words(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command.text.startswith("make ") and shutil.which("make") is None:
        pytest.skip("there is no make here")
    for name in ("RAY_ADDRESS", "PAGERAY_API_KEY", "PAGERAY_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    check(command.text, tmp_path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("pageray frob", AssertionError),
        ("pageray serve MODEL --port high", UsageError),
        ("pageray serve MODEL --prot 8000", UsageError),
        ("pageray serve MODEL --replicas many", PageRayError),
        ("pageray plan MODEL --tensor-parallel-size 0", PageRayError),
        ("make frob", AssertionError),
        ("make chaos SEDE=7", AssertionError),
        ("make chaos ARGS=--frob", SystemExit),
        ("make serve ARGS=--frob", UsageError),
        ("python -m tests.benchmarks.frob", ModuleNotFoundError),
        ("python -m tests.benchmarks.stall --frob 1", SystemExit),
        ("python -m tests.benchmarks.cluster_cases", SystemExit),
        ("ray drain-node --frob", Exception),
        ("serve frob", AssertionError),
        ("docker build -f k8s/Dockerfile --build-arg VARIANT=tpu -t a/b:1 .", AssertionError),
        ("docker build -f k8s/Dockerfile --build-arg KIND=cpu -t a/b:1 .", AssertionError),
        ("docker build -f k8s/Dockerfile -t ghcr.io/pageray/pageray:0.0.9-cpu .", AssertionError),
        ("kubectl apply -k k8s/overlays/frob", AssertionError),
        ("kubectl -n pageray get rayservice frob", AssertionError),
        (". ./frob.env", AssertionError),
        ("frob 1", AssertionError),
    ],
)
@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_wrong_words_are_noticed(text: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        check(text, tmp_path)
