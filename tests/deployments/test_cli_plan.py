"""`pageray plan`: what it prints, and how it refuses."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deployments import cli
from engine import hub_model
from engine.errors import InvalidConfig, InvalidModel, PageRayError
from kernels import gpu_library
from tests.deployments.llama_70b import LLAMA_70B
from tests.engine.gguf_checkpoint import random_model, write_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with nothing but its config.json."""
    path = tmp_path / "large"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA_70B))
    return path


def run(*words: str) -> Result:
    environment = {"COLUMNS": "100", "RAY_ADDRESS": None, "PAGERAY_API_KEY": None}
    return CliRunner().invoke(cli.app, ["plan", *words], env=environment)


def plan_json(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.exception
    plan: dict[str, Any] = json.loads(result.stdout)
    return plan


def refusal(*words: str) -> PageRayError:
    error = run(*words).exception
    assert isinstance(error, PageRayError)
    return error


def test_a_plan_for_gpus_that_are_not_here(folder: Path) -> None:
    result = run(str(folder), "--device-memory", "80GiB", "-tp", "4")

    assert result.exit_code == 0, result.exception
    title, *rows = result.stdout.splitlines()
    assert title == "large: LlamaForCausalLM, bfloat16, each of 4 ranks on a GPU of 80.0 GiB"
    words = [row.split() for row in rows]
    assert words[0] == ["weights", "32.86", "GiB"]
    assert [row[0] for row in words] == ["weights", "step", "KV", "left", "longest"]
    assert "blocks of 16 tokens" in rows[2]
    assert rows[-1].startswith("longest sequence 131072 tokens; ")
    assert "of them fit at once" in rows[-1]


def test_json_has_the_same_in_bytes(folder: Path) -> None:
    plan = plan_json(str(folder), "--device-memory", "80GiB", "-tp", "4", "--max-model-len", "8192")

    assert plan["weight_bytes"] == pytest.approx(70_553_706_496 * 2 / 4, rel=1e-3)
    assert plan["kv_cache_bytes"] == plan["num_blocks"] * plan["block_bytes"]
    assert plan["max_concurrency"] == plan["num_cache_tokens"] / 8192
    names = ("model", "device", "dtype", "packing", "tensor_parallel_size", "max_model_len")
    assert [plan[name] for name in names] == ["large", "cuda", "bfloat16", "none", 4, 8192]


def test_options_of_serve_change_the_plan(folder: Path) -> None:
    words = [str(folder), "--device-memory", "141GiB", "-tp", "8"]
    plain = plan_json(*words)

    assert plan_json(*words, "--block-size", "32")["block_bytes"] == 2 * plain["block_bytes"]
    given = plan_json(*words, "--kv-cache-memory", "8GiB")
    assert given["num_blocks"] == (1 << 30) // plain["block_bytes"]
    less = plan_json(*words, "--gpu-memory-utilization", "0.5")
    assert less["num_blocks"] < plain["num_blocks"]
    # With many sequences their logits and the sampler take most of a step, however long it is.
    few = (*words, "--max-num-seqs", "16")
    longer = plan_json(*few, "--max-num-batched-tokens", "16384")
    assert longer["activation_bytes"] > 2 * plan_json(*few)["activation_bytes"]
    tiered = plan_json(*words, "--host-kv-memory", "64GiB")
    assert tiered["num_host_blocks"] == (8 << 30) // plain["block_bytes"]
    assert plan_json(*words, "--dtype", "float32")["weight_bytes"] > 1.9 * plain["weight_bytes"]


def test_a_cache_in_float8_is_planned_at_its_size(folder: Path) -> None:
    words = [str(folder), "--device-memory", "80GiB", "-tp", "4"]
    plain = plan_json(*words)

    for name in ("fp8", "fp8_e4m3"):
        halved = plan_json(*words, "--kv-cache-dtype", name)
        assert 2 * halved["block_bytes"] == plain["block_bytes"]
        assert halved["num_blocks"] >= 2 * plain["num_blocks"]
        assert halved["kv_cache_dtype"] == name
    shown = run(*words, "--kv-cache-dtype", "fp8").stdout
    assert ", bfloat16, KV in float8, each of 4 ranks" in shown
    error = refusal(str(folder), "--device", "cpu", "--kv-cache-dtype", "fp8")
    assert "the device is cpu" in error.cause
    assert "--kv-cache-dtype auto" in error.fix


@pytest.mark.parametrize(
    ("words", "cause", "fix"),
    [
        ("", "needs 131.4", "It fits with --tensor-parallel-size 2."),
        ("-tp 2 --max-model-len 100000", "KV cache holds", "--tensor-parallel-size 4"),
        ("-tp 4 --max-model-len 200000", "made for 131072", "--max-model-len 131072"),
        ("-tp 4 --kv-cache-memory 400GiB", "100.00 GiB for KV", "--kv-cache-memory left out"),
        ("-tp 3", "does not divide", "It fits with --tensor-parallel-size 4."),
    ],
)
def test_what_does_not_fit_ends_in_what_would(
    folder: Path, words: str, cause: str, fix: str
) -> None:
    error = refusal(str(folder), "--device-memory", "80GiB", *words.split())
    assert cause in error.cause
    assert fix in error.fix


def test_a_gpu_has_to_be_here_or_described(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    error = refusal(str(folder), "--device", "cuda")
    assert isinstance(error, InvalidConfig)
    assert "--device-memory 80GiB" in error.fix
    assert "no size" in refusal(str(folder), "--device-memory", "much").cause


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}


def test_a_quantised_checkpoint_is_planned_as_its_device_keeps_it(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**LLAMA_70B, "quantization_config": AWQ}))
    words = [str(folder), "--max-model-len", "8192"]

    kept = plan_json(*words, "--device-memory", "80GiB")

    assert kept["checkpoint"] == "quantised"
    # 68.5 billion of its 70.6 are in groups of 128 that take 64 + 2 + 1 bytes.
    plain, grouped = 2 * 8192 * 128_256, 80 * (2 * 8192 + 2 * 1024 + 3 * 28672) * 8192
    assert kept["weight_bytes"] == pytest.approx(2 * plain + grouped * 67 / 128, rel=1e-3)
    assert ", bfloat16, quantised, 1 rank" in run(*words, "--device-memory", "80GiB").stdout
    # 28672 inputs in 64 shares of 448 would cut them.
    error = refusal(*words, "--device-memory", "80GiB", "-tp", "64")
    assert "no whole groups" in error.cause


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let nothing find or import Triton."""
    gpu_library.gpu_operations.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "triton", None)
        yield
    gpu_library.gpu_operations.cache_clear()


@pytest.mark.usefixtures("without_triton")
def test_float8_is_planned_where_no_kernel_could_run(folder: Path) -> None:
    words = [str(folder), "-tp", "4"]

    plan = plan_json(*words, "--quantization", "fp8", "--device-memory", "80GB")

    assert plan["packing"] == "fp8"
    plain = plan_json(*words, "--device-memory", "80GB")
    assert plan["weight_bytes"] < 0.55 * plain["weight_bytes"]
    error = refusal(*words, "--quantization", "fp8", "--device", "cpu")
    assert "the device is cpu" in error.cause


def test_a_gguf_file_is_planned_from_its_header(tmp_path: Path) -> None:
    path = write_gguf(random_model("llama"), tmp_path / "tiny.gguf")
    words = ["--device", "cpu", "--kv-cache-memory", "1MiB", "--cache-dir", str(tmp_path / "cache")]

    plan = plan_json(str(path), *words)

    assert (plan["model"], plan["device"]) == ("tiny", "cpu")
    assert plan["max_model_len"] == 512
    assert not (tmp_path / "cache").exists(), "nothing was converted"


def test_of_a_hub_model_the_config_alone_is_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, str]] = []

    def hf_hub_download(model: str, name: str, **_: object) -> str:
        fetched.append((model, name))
        return str(folder / name)

    monkeypatch.setattr(hub_model, "hf_hub_download", hf_hub_download)
    plan = plan_json("org/large", "--device-memory", "80GiB", "-tp", "8")
    assert plan["model"] == "org/large"
    assert fetched == [("org/large", "config.json")]


def test_a_model_that_cannot_be_served_cannot_be_planned(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["Other"]}')
    assert isinstance(refusal(str(folder), "--device-memory", "80GiB"), InvalidModel)


@pytest.mark.slow
def test_the_default_model_is_planned_for_this_machine(smollm2_path: Path) -> None:
    cache_dir = smollm2_path.parent.parent
    words = ["--cache-dir", str(cache_dir), "--device", "cpu", "--kv-cache-memory", "256MiB"]
    plan = plan_json(*words)
    assert plan["model"] == "smollm2"
    assert plan["num_blocks"] == (256 << 20) // plan["block_bytes"]


def test_each_of_several_models_is_planned(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "pageray.yaml"
    file.write_text(
        f"tensor-parallel-size: 4\nmodels:\n- model: {folder}\n- model: {folder}\n"
        "  served-model-name: other\n  tensor-parallel-size: 8\n"
    )

    result = run("--config", str(file), "--device-memory", "80GiB")

    assert result.exit_code == 0, result.exception
    titles = [line for line in result.stdout.splitlines() if ": Llama" in line]
    assert [title.split(":")[0] for title in titles] == ["large", "other"]
    assert ["each of 4 ranks" in title for title in titles] == [True, False]
    assert "each of 8 ranks" in titles[1]
