"""Whether a command that README has could be run: each program's real command line reads it.

Nothing is run but `make -n`. Every check raises AssertionError or what the command line itself
raises for words that it does not take.
"""

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn
from unittest.mock import patch

import typer

from deployments.cli import app
from deployments.cli_options import ServeOptions
from deployments.cli_settings import app_args, launch_options
from tests.readme.document import ROOT, readme

PLACEHOLDERS: Final = {
    "[MODEL]": "smollm2",
    "MODEL": "smollm2",
    "TRACE": "trace.csv",
    "ID": "chatcmpl-1",
    "KEY": "sk-1",
    "N": "2",
    "MIN:MAX": "1:2",
    "HEAD:6379": "10.0.0.1:6379",
    "LIMIT": "1",
}
"""What README has in capitals, and a value for it."""
OPTIONAL: Final = re.compile(r"\[(-[^\]]*)\]")
SAME_OPTIONS: Final = "[same options]"


def check(text: str, folder: Path) -> None:
    """Raise unless the command could be run; the folder is for files that it names."""
    words = words_of(text)
    program = Path(words[0]).name
    assert program in CHECKS, f"no check knows the program {program}: add one to {__name__}"
    CHECKS[program](words[1:], folder)


def words_of(text: str) -> list[str]:
    """The words of a command as a shell has them, with values for what stands in capitals."""
    text = OPTIONAL.sub(r"\1", text.replace(SAME_OPTIONS, "")).partition(" > ")[0]
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(text.partition(" | ")[0])]


def check_pageray(words: Sequence[str], folder: Path) -> None:
    """Of `pageray`: its own parser, and what the options become."""
    group: Any = typer.main.get_command(app)
    name, *rest = words
    assert name in group.commands, f"there is no command pageray {name}"
    if "--help" in rest:
        return
    if "FILE" in rest:
        file = folder / "file.yaml"
        file.write_text(readme().block("yaml", "models:"))
        rest = [str(file) if word == "FILE" else word for word in rest]
    with group.commands[name].make_context(name, rest) as context:
        if name in ("serve", "config", "plan"):
            known = {field: context.params[field] for field in ServeOptions.__dataclass_fields__}
            options = ServeOptions(**known)
            app_args(options)
            launch_options(options)


def check_make(words: Sequence[str], folder: Path) -> None:
    """Of `make`: targets and variables, and every command of ours that the recipes have."""
    makefile = (ROOT / "Makefile").read_text()
    for name, given in (word.split("=", 1) for word in words if "=" in word):
        assert re.search(rf"^{name} \?=", makefile, re.M), f"Makefile has no variable {name}"
        assert given
    # Whoever runs the tests with `make` hands these down.
    inherited = ("ARGS", "SEED", "MINUTES", "PYTHON", "PIP_ARGS", "MAKEFLAGS", "MAKELEVEL")
    environment = {name: text for name, text in os.environ.items() if name not in inherited}
    make = shutil.which("make")
    assert make is not None, "there is no make here"
    done = subprocess.run(
        [make, "-n", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if re.match(r"\.venv/bin/pageray |(\.venv/bin/python|python3) -m tests\.", line):
            check(line.partition(" | ")[0], folder)


class Parsed(Exception):
    """A parser took the words."""


def check_python(words: Sequence[str], _folder: Path) -> None:
    """Of `python -m MODULE`: the module's own parser, at which the run stops."""
    flag, name, *rest = words
    assert flag == "-m"
    module = importlib.import_module(name)
    if Path(str(module.__file__)).name == "__init__.py":
        module = importlib.import_module(f"{name}.__main__")
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parse_args(parser, rest)
        raise Parsed

    # What a parser does not take ends in its own words and SystemExit.
    with patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            module.main()
        except Parsed:
            return
    raise AssertionError(f"{name} reads no arguments")


def check_ray(words: Sequence[str], _folder: Path) -> None:
    """Of `ray`."""
    from ray.scripts.scripts import cli

    _check_click(cli, words)


def check_serve(words: Sequence[str], _folder: Path) -> None:
    """Of Ray Serve's `serve`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using extra keyword arguments on `Field`")
        from ray.serve.scripts import cli
    _check_click(cli, [*words, "app.yaml"] if words == ["deploy"] else words)


def _check_click(group: Any, words: Sequence[str]) -> None:
    name, *rest = words
    assert name in group.commands, f"there is no command {name}"
    with group.commands[name].make_context(name, list(rest)):
        pass


MANIFESTS = {
    "rayservice": "k8s/base/ray-service.yaml",
    "rayjob": "k8s/components/ray-job/ray-job.yaml",
}


def check_kubectl(words: Sequence[str], _folder: Path) -> None:
    """Of `kubectl`: that what is applied is there, and what is asked for is what that makes."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("-n", dest="namespace")
    parser.add_argument("verb", choices=["apply", "get"])
    parser.add_argument("-k", type=Path)
    parser.add_argument("-f", type=Path)
    parser.add_argument("kind", nargs="?", choices=list(MANIFESTS))
    parser.add_argument("name", nargs="?")
    options = parser.parse_args(list(words))
    if options.verb == "apply":
        assert (ROOT / (options.f or options.k / "kustomization.yaml")).is_file()
    else:
        assert f"name: {options.name}\n" in (ROOT / MANIFESTS[options.kind]).read_text()
        kustomization = (ROOT / "k8s/base/kustomization.yaml").read_text()
        assert f"namespace: {options.namespace}\n" in kustomization


def check_docker(words: Sequence[str], _folder: Path) -> None:
    """Of `docker build`: the file, its arguments, and a tag like that which the pods have."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("verb", choices=["build"])
    parser.add_argument("-f", type=Path, required=True)
    parser.add_argument("--build-arg", action="append", default=[])
    parser.add_argument("-t", required=True)
    parser.add_argument("context", type=Path)
    options = parser.parse_args(list(words))
    dockerfile = (ROOT / options.f).read_text()
    for name, given in (word.split("=", 1) for word in options.build_arg):
        assert re.search(rf"^ARG {name}=", dockerfile, re.M), f"{options.f} has no ARG {name}"
        assert re.search(rf"^ +{given}\) ", dockerfile, re.M), f"{options.f} takes no {given}"
    overlays = (ROOT / "k8s/overlays").glob("*/kustomization.yaml")
    texts = [path.read_text() for path in [*overlays, *(ROOT / "k8s/base").glob("*.yaml")]]
    name, tag = options.t.rsplit(":", 1)
    assert any(f"{name}:{tag}" in text or f"newTag: {tag}" in text for text in texts), options.t
    assert options.context == Path()


def check_curl(words: Sequence[str], _folder: Path) -> None:
    """Of `curl`: nothing, for it is run."""
    assert any(word.startswith("http://localhost:8000/") for word in words)


def check_dot(words: Sequence[str], _folder: Path) -> None:
    """Of `.`: that an earlier command makes the file, or setting up does."""
    [file] = words
    made = [command.text.partition(" > ")[2] for command in readme().commands()]
    assert file.removeprefix("./") in [*made, ".venv/bin/activate"]


CHECKS: Final[dict[str, Callable[[Sequence[str], Path], None]]] = {
    "": check_dot,  # the name of the path `.`
    "curl": check_curl,
    "docker": check_docker,
    "kubectl": check_kubectl,
    "make": check_make,
    "pageray": check_pageray,
    "python": check_python,
    Path(sys.executable).name: check_python,
    "python3": check_python,
    "ray": check_ray,
    "serve": check_serve,
}
