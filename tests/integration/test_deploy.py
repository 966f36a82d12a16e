"""The other ways in: `serve deploy` of what `pageray config` prints, and scaling with demand."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from deployments.serve_environment import haproxy_environment, serve_environment
from engine import LLM, SamplingParams
from tests.integration.serving import Serving, free_port, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROMPT = list(range(2000, 2040))


@pytest.fixture
def dashboard() -> Iterator[str]:
    """URL of a Ray cluster's dashboard, where `serve deploy` goes."""
    # Not tmp_path: the path of a socket may have 97 characters.
    folder = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))
    environment = {
        **os.environ,
        "TMPDIR": str(folder),
        **serve_environment(),
        **haproxy_environment(folder, free_port(), free_port()),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.ray_head"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield "http://" + json.loads(process.stdout.readline())["dashboard"]
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        process.stdout.read()
        process.wait(60)
        process.stdout.close()
        _, alive = psutil.wait_procs(started, timeout=10)
        for child in alive:
            child.kill()
        shutil.rmtree(folder)
    assert not alive, f"left behind: {alive}"


def test_serve_deploy_of_the_printed_config_gives_the_tokens_of_one_rank(
    dashboard: str, tiny_model: Path, tmp_path: Path
) -> None:
    port = free_port()
    options = ["--tensor-parallel-size", "2", "--port", str(port), "--host", "127.0.0.1"]
    # On processors with bfloat16 the default is that, in which the sums of two ranks differ.
    options += ["--kv-cache-memory", "32MiB", "--served-model-name", "tiny", "--dtype", "float32"]
    config = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "config", str(tiny_model), *options],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    file = tmp_path / "app.yaml"
    file.write_text(config)
    serve = str(Path(sys.executable).with_name("serve"))
    # Whoever deploys shows the token that Ray made for this user.
    token = {**os.environ, "RAY_AUTH_MODE": "token"}
    deploy = [serve, "deploy", str(file), "-a", dashboard]
    done = subprocess.run(deploy, capture_output=True, env=token, text=True, check=False)
    assert done.returncode == 0, done.stderr
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "logprobs": 0}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

        def is_ready() -> bool:
            try:
                return client.get("/ready").status_code == 200
            except httpx2.TransportError:
                return False

        wait_until(is_ready, 120, "ready")
        answer = client.post("/v1/completions", json=body).json()["choices"][0]
    with LLM(tiny_model, dtype="float32", kv_cache_bytes=32 << 20) as llm:
        params = SamplingParams(max_tokens=24, temperature=0)
        [alone] = llm.generate([PROMPT], params)
    assert answer["text"] == alone.choices[0].text


def test_replicas_follow_the_demand(tiny_model: Path, tmp_path: Path) -> None:
    serving = Serving(
        tiny_model,
        *("--served-model-name", "tiny", "--replicas", "1:2", "--kv-cache-memory", "1MiB"),
        log=tmp_path / "log",
    )
    try:
        serving.wait_ready()
        assert len(serving.replicas()) == 1
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 600, "n": 8, "ignore_eos": True}
        with ThreadPoolExecutor() as pool:
            posts: list[Future[httpx2.Response]] = []

            def second_is_there() -> bool:
                # Three at a time for as long as it takes: one moment of demand adds nothing.
                while sum(not post.done() for post in posts) < 3:
                    posts.append(pool.submit(serving.client.post, "/v1/completions", json=body))
                return len(serving.replicas()) == 2

            wait_until(second_is_there, 60, "second replica")
            assert {post.result().status_code for post in posts} == {200}
    finally:
        serving.stop()
