"""The other ways in: `serve deploy` of what `pageray config` prints, and scaling with demand."""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
import pytest

from engine import LLM, SamplingParams
from tests.integration.deploying import deploy, is_ready
from tests.integration.serving import Serving, free_port, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROMPT = list(range(2000, 2040))


def test_serve_deploy_of_the_printed_config_gives_the_tokens_of_one_rank(
    dashboard: str, tiny_model: Path, tmp_path: Path
) -> None:
    port = free_port()
    options = ["--tensor-parallel-size", "2", "--port", str(port), "--host", "127.0.0.1"]
    # On processors with bfloat16 the default is that, in which the sums of two ranks differ.
    options += ["--kv-cache-memory", "32MiB", "--served-model-name", "tiny", "--dtype", "float32"]
    deploy(dashboard, tmp_path, str(tiny_model), *options)
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "logprobs": 0}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        wait_until(partial(is_ready, client), 120, "ready")
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
