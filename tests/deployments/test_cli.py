"""The command line, run as a user does, with everything behind it replaced."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments import cli
from deployments.args import AppArgs, ModelArgs
from deployments.launch_options import LaunchOptions
from deployments.serve_environment import serve_environment
from deployments.tenant import ApiKey
from deployments.trace_export import TraceExport
from engine.errors import InvalidConfig
from tests.deployments.command_line import Launches, Run


def test_serve_without_options_serves_the_default_model_to_this_machine(
    run: Run, launches: Launches, tmp_path: Path
) -> None:
    assert run("serve") == (0, "", "")
    assert launches.args == AppArgs(cache_dir=tmp_path / "cache" / "pageray")
    assert launches.options == LaunchOptions(host="127.0.0.1", port=8000)
    assert launches.pulled == [("smollm2", tmp_path / "cache" / "pageray")]


@pytest.mark.parametrize(
    "words",
    [
        # ours
        "some/model --tensor-parallel-size 2 --max-model-len 512 --replicas 3 --max-num-seqs 8 "
        "--max-num-batched-tokens 99 --memory-utilization 0.5 --drain-timeout 9 --host 0.0.0.0 "
        "--port 9 --max-body-size 2MB --dtype float16",
        # vLLM's
        "--model some/model -tp 2 --max-model-len 512 --data-parallel-size 3 --max-num-seqs 8 "
        "--max-num-batched-tokens 99 --gpu-memory-utilization 0.5 --shutdown-timeout 9 "
        "--host 0.0.0.0 --port 9 --max-body-size 2MB --dtype half",
        # TGI's
        "--model-id some/model --num-shard 2 --max-total-tokens 512 -dp 3 --max-batch-size 8 "
        "--max-batch-prefill-tokens 99 --cuda-memory-fraction 0.5 "
        "--graceful-termination-timeout 9 --hostname 0.0.0.0 -p 9 --payload-limit 2000000 "
        "--dtype float16",
    ],
)
def test_names_of_vllm_and_tgi_mean_the_same(run: Run, launches: Launches, words: str) -> None:
    code, _, error = run("serve", *words.split(), "--cache-dir", "/cache")
    assert (code, error) == (0, "")
    model = ModelArgs(
        model="some/model",
        tensor_parallel_size=2,
        max_model_len=512,
        replicas_min=3,
        replicas_max=3,
        max_num_seqs=8,
        max_num_batched_tokens=99,
        memory_utilization=0.5,
        dtype="float16",
    )
    assert launches.args == AppArgs(
        models=(model,), cache_dir=Path("/cache"), drain_timeout_s=9, max_body_bytes=2_000_000
    )
    assert launches.options == LaunchOptions(host="0.0.0.0", port=9)  # noqa: S104  any address


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [
        ("1000", 1000),
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1e9", 10**9),
        ("1.5 gb", 15 * 10**8),
    ],
)
def test_sizes_take_units(run: Run, launches: Launches, size: str, num_bytes: int) -> None:
    run("serve", "--kv-cache-memory", size)
    assert launches.model().kv_cache_bytes == num_bytes


@pytest.mark.parametrize(
    "words",
    [
        "--preset interactive --host-kv-memory 2GiB --deterministic",
        "--performance-mode interactivity --kv-offloading-size 2GiB --deterministic",
    ],
)
def test_scheduling_options_reach_the_engine(run: Run, launches: Launches, words: str) -> None:
    assert run("serve", *words.split()) == (0, "", "")
    args = launches.model()
    assert (args.preset, args.host_kv_bytes, args.deterministic) == ("interactive", 2 << 30, True)


def test_an_admins_key_is_told_apart(run: Run, launches: Launches) -> None:
    assert run("serve", "--admin-key", "sk-a", "--api-key", "sk-b") == (0, "", "")
    assert launches.args is not None
    assert launches.args.api_keys == (ApiKey.of("sk-b"), ApiKey.of("sk-a", admin=True))


@pytest.mark.parametrize("name", ["--otlp-endpoint", "--otlp-traces-endpoint"])
def test_traces_go_where_they_are_told(run: Run, launches: Launches, name: str) -> None:
    words = f"{name} http://collector:4317 --otlp-service-name chat --trace-sampling-ratio 0.1"
    assert run("serve", *words.split()) == (0, "", "")
    assert launches.args is not None
    expected = TraceExport(
        endpoint="http://collector:4317", service_name="chat", sampling_ratio=0.1
    )
    assert launches.args.trace_export == expected


def test_replicas_take_a_range(run: Run, launches: Launches) -> None:
    run("serve", "--replicas", "0:4", "--scale-to-zero-delay", "60", "--scale-down-delay", "90")
    args = launches.model()
    assert (args.replicas_min, args.replicas_max) == (0, 4)
    assert (args.scale_to_zero_delay_s, args.scale_down_delay_s) == (60, 90)


def test_local_model_path_is_absolute_for_processes_in_other_folders(
    run: Run, launches: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    run("serve", "tiny")
    assert launches.model().model == str(tmp_path / "tiny")
    assert launches.model().model_name == "tiny"


@pytest.mark.parametrize("name", ["--accelerator-label", "--accelerator-labels"])
def test_labels_select_nodes_of_a_cluster_that_is_joined(
    run: Run, launches: Launches, name: str
) -> None:
    words = [name, "gpu=in(h100, h200)", name, "spot=!true"]
    assert run("serve", *words, "--address", "10.0.0.1:6379") == (0, "", "")
    assert launches.model().accelerator_labels == {"gpu": "in(h100, h200)", "spot": "!true"}
    assert run("serve", name, "spot=!true", name, "ray.io/accelerator-type=H100") == (0, "", "")
    code, _, error = run("serve", name, "gpu=h100")
    assert code == 2
    assert "smollm2 is for nodes with the label gpu=h100" in error


def test_ray_finds_its_environment_and_own_haproxy_files(run: Run, launches: Launches) -> None:
    run("serve")
    assert launches.environment["RAY_AUTH_MODE"] == "token"
    folder = Path(launches.environment["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent
    assert not folder.exists(), "removed at the end"


def test_joining_a_cluster_leaves_its_haproxy_and_its_models_alone(
    run: Run, launches: Launches
) -> None:
    run("serve", "--address", "10.0.0.1:6379")
    everywhere = "0.0.0.0"  # noqa: S104  what is tested
    assert launches.options == LaunchOptions(host=everywhere, address="10.0.0.1:6379")
    assert "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC" not in launches.environment
    assert launches.pulled == []


def test_failed_start_ends_in_cause_and_fix(run: Run, launches: Launches) -> None:
    launches.error = InvalidConfig("The cause [1].", "The fix.")
    assert run("serve") == (2, "", "Error: The cause [1].\nThe fix.\n")


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("--block-size 3", "block size is 3"),
        ("--kv-cache-memory lots", '"lots" is no size'),
        ("--kv-cache-memory 1XB", '"1XB" is no size'),
        ("--kv-cache-memory 0", "kv-cache-bytes is 0"),
        ("--host-kv-memory much", '"much" is no size'),
        ("--host-kv-memory 1GiB --no-enable-prefix-caching", "prefix caching is off"),
        ("--preset fast", "fast"),
        ("--replicas many", '"many" is no number of replicas'),
        ("--replicas 4:1", "below replicas_min 4"),
        ("--replicas 0", "replicas-max is 0"),
        ("--replicas 0:2 --scale-to-zero-delay 0", "scale-to-zero-delay-s is 0"),
        ("--accelerator-label gpu", '"gpu" is no label with a value'),
        ("--accelerator-label gpu= ", "selects no node"),
        ("--accelerator-label gpu=a --accelerator-label gpu=b", '"gpu" is given twice'),
        ("one --model two", "Two models are named"),
        ("--dtype int3", "int3"),
        ("--otlp-endpoint collector:4317", "no address with a scheme"),
        ("--otlp-endpoint http://c:4317 --trace-sampling-ratio 2", "sampling-ratio is 2"),
        ("--quantize gptq", "--quantize"),
    ],
)
def test_impossible_option_is_refused_by_name(
    run: Run, launches: Launches, words: str, cause: str
) -> None:
    code, output, error = run("serve", *words.split())
    assert (code, output) == (2, "")
    assert cause in error
    assert "Traceback" not in error
    assert launches.args is None


def test_foreign_kernels_distribution_stops_the_start(
    run: Run, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "0.18.2")
    code, _, error = run("serve")
    assert code == 2
    assert "kernels 0.18.2 is installed" in error
    assert "pip uninstall -y kernels" in error
    assert launches.args is None


def test_config_prints_what_serve_deploy_takes(run: Run) -> None:
    code, output, error = run("config", "some/model", "--replicas", "1:4", "--api-key", "sk-k")
    assert (code, error) == (0, "")
    config = ServeDeploySchema.model_validate(yaml.safe_load(output))
    (application,) = config.applications
    assert application.import_path == "deployments.app:build"
    models = (ModelArgs(model="some/model", replicas_max=4),)
    args = AppArgs(models=models, api_keys=(ApiKey.of("sk-k"),))
    assert AppArgs.model_validate(application.args) == args
    assert "sk-k" not in output
    assert "cache_dir" not in application.args, "a folder of this machine means nothing there"
    assert "#   RAY_AUTH_MODE=token" in output


def test_a_shell_takes_the_environment_of_a_node_and_all_get_one_token(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    code, output, error = run("node-env")
    assert (code, error) == (0, "")
    file = tmp_path / "node.env"
    file.write_text(output)
    shell = subprocess.run(
        ["/bin/sh", "-c", f". {file}; env"], env={}, capture_output=True, text=True, check=True
    )
    exported = dict(line.split("=", 1) for line in shell.stdout.splitlines())
    assert exported.items() >= serve_environment().items()
    assert len(exported["RAY_AUTH_TOKEN"]) == 64
    assert run("node-env")[1] != output, "each cluster has its own"
    # Where it was read in already, the cluster keeps its token.
    monkeypatch.setenv("RAY_AUTH_TOKEN", exported["RAY_AUTH_TOKEN"])
    assert run("node-env")[1] == output


def test_pull_says_where_the_model_is(run: Run, launches: Launches, tmp_path: Path) -> None:
    code, output, _ = run("pull", "smollm2", "--cache-dir", str(tmp_path))
    assert (code, output) == (0, f"smollm2 is at {tmp_path}/smollm2\n")


def test_cache_dir_is_found_in_the_environment() -> None:
    assert cli.default_cache_dir({"PAGERAY_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cli.default_cache_dir({"XDG_CACHE_HOME": "/b"}) == Path("/b/pageray")
    assert cli.default_cache_dir({}) == Path.home() / ".cache" / "pageray"


def test_version(run: Run) -> None:
    code, output, _ = run("--version")
    assert code == 0
    assert output.startswith("pageray 0.1")


STATUS = {
    "models": [
        {
            "model": "smollm2",
            "replicas": [
                {
                    "replica_id": "x7k2mq9a",
                    "state": "serving",
                    "connected": True,
                    "age_s": 0.25,
                    "num_blocks": 100,
                    "num_free_blocks": 60,
                    "num_evictable_blocks": 10,
                    "num_running": 3,
                    "num_waiting": 2,
                    "num_steps": 4711,
                },
                {"replica_id": "b3n8v0zt", "state": "serving", "connected": False},
            ],
        },
        {"model": "org/other", "replicas": []},
    ],
}


def answer(monkeypatch: pytest.MonkeyPatch, response: httpx2.Response) -> list[httpx2.Request]:
    """Let a function stand for the service; return the requests it will see."""
    requests: list[httpx2.Request] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return response

    def open_client(url: str, _api_key: Any) -> httpx2.Client:
        return httpx2.Client(base_url=url, transport=httpx2.MockTransport(handle))

    monkeypatch.setattr(cli, "open_client", open_client)
    return requests


def test_status_shows_each_replica_and_its_blocks(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = answer(monkeypatch, httpx2.Response(200, json=STATUS))
    code, output, _ = run("status", "--url", "http://there:1")
    assert code == 0
    assert str(requests[0].url) == "http://there:1/status"
    first, second = (
        line.split() for line in output.splitlines() if "serving" in line or "unreach" in line
    )
    assert first[:3] == ["x7k2mq9a", "serving", "30/100"]
    assert first[-5:] == ["10", "3", "2", "0.2", "s"]
    assert second[:2] == ["b3n8v0zt", "unreachable"]
    titles = [line for line in output.splitlines() if ": " in line]
    assert titles == ["smollm2: 2 replicas", "org/other: 0 replicas"]


def test_status_json_is_what_the_service_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, httpx2.Response(200, json=STATUS))
    assert json.loads(run("status", "--json")[1]) == STATUS


def test_server_error_is_shown_in_its_own_words(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"error": {"message": "The API key is wrong.", "code": "invalid_api_key"}}
    answer(monkeypatch, httpx2.Response(401, json=body))
    code, _, error = run("status")
    assert code == 2
    assert "401: The API key is wrong." in error


@pytest.mark.parametrize("content", [b"<html>", b"[1]"])
def test_something_else_than_pageray_is_noticed(
    run: Run, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    answer(monkeypatch, httpx2.Response(200, content=content))
    code, _, error = run("status")
    assert code == 2
    assert "Check --url." in error


@pytest.mark.parametrize("command", ["status", "chat"])
def test_client_says_so_when_nobody_listens(run: Run, command: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: nobody else can answer there
        code, _, error = run(command, "--url", f"http://127.0.0.1:{held.getsockname()[1]}")
    assert code == 2
    assert "Nobody listens at http://127.0.0.1" in error
    assert "pageray serve" in error


def test_command_line_comes_up_without_ray_and_torch() -> None:
    code = (
        "import sys, deployments.cli\n"
        "print({'ray', 'torch', 'transformers', 'numpy', 'starlette'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
