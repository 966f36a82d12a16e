"""Rules of the repository that no linter checks.

The guards on the name `kernels`: transformers looks for a package of that name (Hugging Face's
own) and takes ours for it, harmlessly as long as what is tested here holds.
"""

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "engine", "cluster", "deployments")
MAX_LINES = 300
MAX_TEST_LINES = 400
ENVIRONMENT_READER = "deployments/cli.py"
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}


def files(*folders: str) -> list[str]:
    return sorted(
        str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py")
    )


def parse(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


@pytest.mark.parametrize("file", files(*PACKAGES, "tests"))
def test_file_is_short_and_says_what_it_is(file: str) -> None:
    num_lines = len((ROOT / file).read_text().splitlines())
    assert num_lines <= (MAX_TEST_LINES if file.startswith("tests/") else MAX_LINES)
    module = parse(file)
    assert not module.body or ast.get_docstring(module), "first statement: a docstring"


def test_engine_and_kernels_do_without_what_gpu_machines_lack() -> None:
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "gguf", "msgspec", "starlette", "grpc"}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
import engine.llm, engine.memory_prediction, kernels.gpu.attention_plan
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("file", files(*PACKAGES))
def test_source_has_no_unsafe_code_and_no_hidden_settings(file: str) -> None:
    allowed = {"os.environ", "os.getenv"} if file == ENVIRONMENT_READER else set()
    assert set(forbidden_things(parse(file))) <= allowed
    source = (ROOT / file).read_text()
    assert "TODO" not in source
    assert "FIXME" not in source


def forbidden_things(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (a.name for a in names if a.name.split(".")[0] in FORBIDDEN_MODULES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in FORBIDDEN_MODULES:
                yield module
            case ast.Call(func=ast.Name("eval" | "exec" as name)):
                yield name
            case ast.Attribute(ast.Name("os"), "environ" | "getenv" as name):
                yield f"os.{name}"


def test_package_kernels_is_empty() -> None:
    # transformers executes this file when it finds it on the path.
    body = parse("kernels/__init__.py").body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_no_distribution_called_kernels_is_installed() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("kernels")


def test_version_is_below_all_that_transformers_takes_for_hugging_face_kernels() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert Version(project["version"]) < Version("0.2")


def test_transformers_loads_a_model_beside_our_kernels(tmp_path: Path) -> None:
    code = """
import sys
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import is_kernels_available

assert not is_kernels_available()
folder = sys.argv[1]
LlamaConfig(num_hidden_layers=1).save_pretrained(folder)
words = Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
assert AutoConfig.from_pretrained(folder).num_hidden_layers == 1
assert AutoTokenizer.from_pretrained(folder)("a").input_ids == [0]
"""
    # From the root: the folder `kernels` itself is then on the path, the worst case.
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_lock_holds_a_fitting_version_of_every_dependency() -> None:
    lock = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            lock[canonical(requirement.name)] = requirement.specifier
    assert str(lock.pop("kernels")) == "<0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        (pin,) = lock[canonical(requirement.name)]
        assert pin.operator == "=="
        assert pin.version in requirement.specifier, requirement.name
        assert "+" not in pin.version, "a local version is on no index"


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")
