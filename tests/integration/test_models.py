"""Two models behind one endpoint, for tenants with keys of their own."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.integration.serving import Serving

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LENGTHS = {"short": 64, "org/long": 256}
KEY = "sk-acme-1"


@pytest.fixture
def serving(smollm2_path: Path, tmp_path: Path) -> Iterator[Serving]:
    """The default model under two names, with different contexts."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump([{"key": KEY, "tenant": "acme", "weight": 2.0}]))
    models = [
        {"model": "smollm2", "served-model-name": name, "max-model-len": str(length)}
        for name, length in LENGTHS.items()
    ]
    options = {"kv-cache-memory": "32MiB", "max-num-seqs": "4", "num-threads": "1"}
    file = tmp_path / "pageray.yaml"
    file.write_text(yaml.safe_dump({**options, "api-keys-file": str(keys), "models": models}))
    serving = Serving(None, "--config", str(file), "--no-dashboard", log=tmp_path / "log")
    serving.client.headers["Authorization"] = f"Bearer {KEY}"
    try:
        serving.wait_ready()
        yield serving
    finally:
        serving.stop()


def complete(
    serving: Serving, model: str, prompt: object = "The capital of France is"
) -> httpx2.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0}
    return serving.client.post("/v1/completions", json=body)


def test_each_model_answers_within_its_own_context_and_a_third_is_not_there(
    serving: Serving,
) -> None:
    data = serving.client.get("/v1/models").json()["data"]
    assert {model["id"]: model["max_model_len"] for model in data} == LENGTHS

    for name in LENGTHS:
        answer = complete(serving, name).json()
        assert answer["model"] == name
        assert "Paris" in answer["choices"][0]["text"]
    prompt = [1000] * 100
    assert complete(serving, "org/long", prompt).status_code == 200
    assert complete(serving, "short", prompt).status_code == 400

    missing = complete(serving, "third")
    assert missing.status_code == 404
    assert "'short', 'org/long'" in missing.json()["error"]["message"]
    unnamed = serving.client.post("/v1/completions", json={"prompt": "Hi"})
    assert unnamed.status_code == 400

    # Whose tokens were whose: each engine has worked, for its own model alone.
    models = {model["model"]: model for model in serving.models()}
    assert list(models) == list(LENGTHS)
    [short], [long] = (model["replicas"] for model in models.values())
    assert short["epoch"] != long["epoch"]
    assert 0 < short["num_prompt_tokens"] < 100 < long["num_prompt_tokens"]
    assert [sum(model["admission"]["num_placements"].values()) for model in models.values()] == [
        1,
        2,
    ]

    del serving.client.headers["Authorization"]
    assert complete(serving, "short").status_code == 401
    assert KEY not in serving.log.read_text()
