"""The other way in: `serve deploy` of what `pageray config` prints."""

from functools import partial
from pathlib import Path

import httpx2
import pytest

from engine import LLM, SamplingParams
from tests.integration.deploying import deploy, is_ready
from tests.integration.serving import free_port, wait_until

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
