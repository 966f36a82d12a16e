"""What README has to copy that needs no service, run as it stands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from tests.deployments.llama_70b import LLAMA_70B
from tests.readme.command_check import words_of
from tests.readme.document import ROOT, readme


def commands(beginning: str) -> list[list[str]]:
    """The words of README's commands that begin so, without the program."""
    found = [c.text for c in readme().commands() if c.text.startswith(beginning)]
    assert found, f"README has no {beginning}"
    return [words_of(text)[1:] for text in found]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    rows = (f"{i / 2},t{i % 3},{50 + 7 * i},{1 + i % 9}" for i in range(20))
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["arrival_s,tenant,input_tokens,output_tokens", *rows]))
    return str(path)


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2_path")
def test_a_story_without_a_server() -> None:
    code = readme().block("python", "SamplingParams")
    # One thread: those that wait for each other on a busy machine take many times as long.
    assert 'LLM("smollm2")' in code
    code = code.replace('"smollm2"', '"smollm2", num_threads=1')
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) > 10


def test_plan_of_a_large_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    for words in commands("pageray plan meta-llama/"):
        assert words[1] == "meta-llama/Llama-3.1-70B"
        done = CliRunner().invoke(app, ["plan", str(tmp_path), *words[2:]])
        assert done.exit_code == 0, done.exception
        assert "longest sequence" in done.stdout


@pytest.mark.parametrize("words", commands("pageray simulate TRACE"), ids=" ".join)
def test_simulations(words: list[str], trace: str) -> None:
    words = [trace if word == "trace.csv" else word for word in words]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.exception
    for summary in json.loads(done.stdout)["policies"].values():
        assert summary["num_failed"] == 0
        assert summary["num_requests"] == 20 * (47 if "47" in words else 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "small"),
    [
        ("cluster_cases", ["--seeds", "1", "--seconds", "5", "--policies", "kv", "lmetric"]),
        ("decision", ["--replicas", "10", "--blocks", "16"]),
    ],
)
def test_figures_of_placement(module: str, small: list[str], trace: str) -> None:
    [words] = commands(f"python -m tests.benchmarks.{module}")
    words = [trace if word == "trace.csv" else word for word in words]
    done = subprocess.run(
        [sys.executable, *words, *small], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
