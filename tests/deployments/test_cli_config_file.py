"""The file of `--config`: options by name, as on the command line."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.args import AppArgs, ModelArgs
from deployments.launch_options import LaunchOptions
from deployments.tenant import ApiKey
from tests.deployments.command_line import Launches, Run


def test_config_file_gives_options_and_command_line_comes_first(
    run: Run, launches: Launches, tmp_path: Path
) -> None:
    file = tmp_path / "pageray.yaml"
    file.write_text(
        "model: some/model\nmax_num_seqs: 8\nnum-shard: 2\nreplicas: 1:4\n"
        "enable-prefix-caching: false\napi-key: [a, b]\ndashboard: no\nport: 9000\n"
    )
    code, _, error = run("serve", "--config", str(file), "--port", "9001", "--cache-dir", "/cache")
    assert (code, error) == (0, "")
    model = ModelArgs(
        model="some/model",
        max_num_seqs=8,
        tensor_parallel_size=2,
        replicas_min=1,
        replicas_max=4,
        enable_prefix_caching=False,
    )
    assert launches.args == AppArgs(
        models=(model,),
        cache_dir=Path("/cache"),
        api_keys=(ApiKey.of("a"), ApiKey.of("b")),
    )
    assert launches.options == LaunchOptions(port=9001, dashboard=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-num-sequences: 8", ['no option "max-num-sequences"', 'Did you mean "max-num-seqs"']),
        ("config: other.yaml", ['no option "config"']),
        ("port: [1, 2]", ["port has more than one value"]),
        ("just words", ["holds no options"]),
        ("a: [", ["cannot be read"]),
        ("port: high", ["port"]),
        ("num-shard: 2\ntensor_parallel_size: 2", ["num-shard and tensor_parallel_size are one"]),
    ],
)
def test_wrong_config_file_is_refused(
    run: Run, launches: Launches, tmp_path: Path, text: str, words: list[str]
) -> None:
    file = tmp_path / "pageray.yaml"
    file.write_text(text)
    code, _, error = run("serve", "--config", str(file))
    assert code == 2
    for word in words:
        assert word in error
    assert launches.args is None


def test_empty_config_file_changes_nothing(run: Run, launches: Launches, tmp_path: Path) -> None:
    file = tmp_path / "pageray.yaml"
    file.write_text("# nothing yet\n")
    assert run("serve", "--config", str(file)) == (0, "", "")
    assert launches.options == LaunchOptions()


SEVERAL = """\
port: 9000
num-frontends: 2
max-num-seqs: 8
cache-dir: /cache
models:
- model: org/big
  tensor-parallel-size: 4
  replicas: 1:4
  kv-cache-memory: 2GiB
  accelerator-labels: {gpu: h100, spot: "!true"}
- model-id: org/small
  served_model_name: small
  max-num-seqs: 32
  enable-prefix-caching: false
  dtype: half
  max-held-time: 5
"""
SEVERAL_MODELS = (
    ModelArgs(
        model="org/big",
        max_num_seqs=8,
        tensor_parallel_size=4,
        replicas_max=4,
        kv_cache_bytes=2 << 30,
        accelerator_labels={"gpu": "h100", "spot": "!true"},
    ),
    ModelArgs(
        model="org/small",
        served_model_name="small",
        max_num_seqs=32,
        enable_prefix_caching=False,
        dtype="float16",
        max_held_s=5,
    ),
)


def test_several_models_have_their_own_options_and_share_the_rest(
    run: Run, launches: Launches, tmp_path: Path
) -> None:
    file = write(tmp_path, SEVERAL)
    address = ("--address", "10.0.0.1:6379")
    assert run("serve", "--config", file, "--block-size", "32", *address) == (0, "", "")
    models = tuple(model.model_copy(update={"block_size": 32}) for model in SEVERAL_MODELS)
    assert launches.args == AppArgs(models=models, cache_dir=Path("/cache"), num_frontends=2)
    assert launches.options is not None
    assert launches.options.port == 9000


def test_each_of_several_models_is_fetched(run: Run, launches: Launches, tmp_path: Path) -> None:
    file = write(tmp_path, "models:\n- model: smollm2\n- {model: a/b, load-format: dummy}\n")
    assert run("serve", "--config", file, "--cache-dir", "/cache") == (0, "", "")
    assert launches.pulled == [("smollm2", Path("/cache")), ("a/b", Path("/cache"))]


def test_config_prints_several_models_for_serve_deploy(run: Run, tmp_path: Path) -> None:
    code, output, error = run("config", "--config", write(tmp_path, SEVERAL))
    assert (code, error) == (0, "")
    config = ServeDeploySchema.model_validate(yaml.safe_load(output))
    assert (config.http_options.port, len(config.applications)) == (9000, 1)
    args = AppArgs.model_validate(config.applications[0].args)
    assert args == AppArgs(models=SEVERAL_MODELS, num_frontends=2, cache_dir=Path("/cache"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: []", ["`models` is no list of models"]),
        ("models: a/b", ["`models` is no list of models"]),
        ("models: {a: b}", ["`models` is no list of models"]),
        ("models: [a/b]", ["model 1 is no mapping"]),
        ("models: [{model: a}, {}]", ["model 2 does not say which"]),
        ("models: [{model: a, max-num-sequences: 8}]", ["model 1", 'Did you mean "max-num-seqs"']),
        ("models: [{model: a, port: 1}]", ["model 1: port belongs to the endpoint"]),
        ("models: [{model: a, cache_dir: b}]", ["model 1: cache_dir belongs to the endpoint"]),
        ("models: [{model: a, api-key: b}]", ["model 1: api-key belongs to the endpoint"]),
        ("models: [{model: a, max-num-seqs: [1]}]", ["model 1: max-num-seqs has more than one"]),
        ("models: [{model: a, max-num-seqs: many}]", ["model 1: max-num-seqs is 'many'"]),
        ("models: [{model: a, max-model-len: 0}]", ["model 1: max-model-len is 0"]),
        ("models: [{model: a, dtype: int3}]", ["model 1: dtype is 'int3'"]),
        ("models: [{model: a}, {model: b, block-size: 3}]", ["model 2: block size is 3"]),
        ("models: [{model: a}, {model: b, replicas: 2:1}]", ["model 2: replicas_max is 1"]),
        ("models: [{model: a, kv-cache-memory: 0}]", ["model 1: kv-cache-bytes is 0"]),
        ("models: [{model: a, accelerator-labels: gpu}]", ['model 1: --accelerator-label: "gpu"']),
        ("models: [{model: a, accelerator-labels: {gpu: [b]}}]", ["accelerator-labels is no list"]),
        ("models: [{model: a}, {model: a}]", ["Two models are called 'a'"]),
        ("models: [{model: a}]\nmodel: b", ["named beside the list of models"]),
        ("models: [{model: a}]\nserved-model-name: b", ["named beside the list of models"]),
        ("models: [{model: a, model-id: b}]", ["model 1: model and model-id are one option"]),
        ("models: [{model: a, models: []}]", ['model 1: there is no option "models"']),
    ],
)
def test_wrong_list_of_models_is_refused_by_place(
    run: Run, launches: Launches, tmp_path: Path, text: str, words: list[str]
) -> None:
    code, output, error = run("serve", "--config", write(tmp_path, text))
    assert (code, output) == (2, "")
    for word in words:
        assert word in error
    assert launches.args is None


def test_model_of_the_command_line_beside_a_list_is_refused(
    run: Run, launches: Launches, tmp_path: Path
) -> None:
    file = write(tmp_path, "models: [{model: a}]")
    code, _, error = run("serve", "b", "--config", file)
    assert code == 2
    assert "named beside the list of models" in error


def test_file_that_is_not_there_is_refused_by_name(
    run: Run, launches: Launches, tmp_path: Path
) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        code, _, error = run("serve", "--config", str(path))
        assert code == 2
        assert f"{path} cannot be read" in error


def write(folder: Path, text: str) -> str:
    file = folder / "pageray.yaml"
    file.write_text(text)
    return str(file)
