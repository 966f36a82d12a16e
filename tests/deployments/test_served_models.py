"""Several models on one endpoint: who answers, and what is shown of each."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from cluster.decision import Candidate, Decision
from cluster.placement import Reason
from cluster.snapshot import AdmissionSnapshot, ReplicaSnapshot
from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from deployments.served_model import ServedModel
from engine.errors import Overloaded
from engine.tokenizer import Tokenizer
from tests.deployments.asgi_client import AsgiCall, call
from tests.deployments.fake_token_source import FakeTokenSource, engine_snapshot
from tests.deployments.tiny_tokenizer import make_tokenizer

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [70]},
}

every_path = pytest.mark.parametrize("path", BODIES)


@pytest.fixture
def big(tokenizer: Tokenizer) -> FakeTokenSource:
    return FakeTokenSource(tokenizer, "I am big.")


@pytest.fixture
def small(tokenizer: Tokenizer) -> FakeTokenSource:
    return FakeTokenSource(tokenizer, "I am small.")


@pytest.fixture
def app(tokenizer: Tokenizer, big: FakeTokenSource, small: FakeTokenSource) -> Starlette:
    models = [
        ServedModel("org/big", max_model_len=512, tokenizer=tokenizer, source=big),
        ServedModel("small", max_model_len=64, tokenizer=tokenizer, source=small, aliases=["mini"]),
    ]
    return build_http_app(models, HttpSettings())


def ask(app: Starlette, path: str, model: object, **fields: Any) -> AsgiCall:
    return call(app, path, {**BODIES[path], "model": model, **fields})


@pytest.mark.parametrize("stream", [False, True])
def test_the_model_that_is_named_answers(
    app: Starlette, big: FakeTokenSource, small: FakeTokenSource, stream: bool
) -> None:
    for name, own_name, text in (
        ("org/big", "org/big", "I am big."),
        ("small", "small", "I am small."),
        ("mini", "small", "I am small."),
    ):
        answer = ask(app, "/v1/completions", name, stream=stream)
        parts = answer.events() if stream else [answer.json()]
        assert {part["model"] for part in parts} == {own_name}
        assert "".join(part["choices"][0]["text"] for part in parts) == text
    assert (len(big.requests), len(small.requests)) == (1, 2)


@every_path
def test_no_name_is_refused_where_it_would_be_a_guess(
    app: Starlette, big: FakeTokenSource, path: str
) -> None:
    for body in (BODIES[path], {**BODIES[path], "model": None}):
        response = call(app, path, body)
        assert response.status == 400
        error = response.json()["error"]
        assert error["param"] == "model"
        for name in ("org/big", "small", "mini"):
            assert repr(name) in error["message"]
    assert not big.requests


@every_path
@pytest.mark.parametrize(
    ("name", "status"), [("gpt-5", 404), ("", 404), ("SMALL", 404), (5, 400), ([], 400), ({}, 400)]
)
def test_name_that_is_none_of_theirs_is_refused_with_the_list(
    app: Starlette, path: str, name: object, status: int
) -> None:
    response = ask(app, path, name)
    assert response.status == status
    error = response.json()["error"]
    assert error["param"] == "model"
    assert (error["code"] == "model_not_found") == (status == 404)
    assert "'org/big', 'small', 'mini'" in error["message"]


def test_each_model_has_its_own_context(app: Starlette) -> None:
    prompt = [70] * 100
    assert ask(app, "/v1/completions", "org/big", prompt=prompt).status == 200
    response = ask(app, "/v1/completions", "small", prompt=prompt)
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert ask(app, "/detokenize", "org/big", tokens=prompt).status == 200
    assert ask(app, "/detokenize", "small", tokens=prompt).status == 400
    for name, max_model_len in (("org/big", 512), ("small", 64)):
        assert ask(app, "/tokenize", name).json()["max_model_len"] == max_model_len


def test_each_model_has_its_own_tokenizer(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = make_tokenizer(tmp_path_factory.mktemp("other"))
    other.backend.add_tokens(["Once upon"])
    models = [
        ServedModel(name, max_model_len=64, tokenizer=each, source=FakeTokenSource(each))
        for name, each in (("one", tokenizer), ("two", other))
    ]
    app = build_http_app(models, HttpSettings())
    counts = [
        ask(app, "/tokenize", name, prompt="Once upon").json()["count"] for name in ("one", "two")
    ]
    assert counts == [len(tokenizer.encode("Once upon")), 1]
    assert counts[0] > 1


def test_list_has_all_of_them(app: Starlette) -> None:
    data = call(app, "/v1/models").json()["data"]
    assert [(model["id"], model["root"], model["max_model_len"]) for model in data] == [
        ("org/big", "org/big", 512),
        ("small", "small", 64),
        ("mini", "small", 64),
    ]
    assert call(app, "/v1/models/org/big").json()["max_model_len"] == 512
    assert call(app, "/v1/models/mini").json()["max_model_len"] == 64


def test_ready_is_every_model_and_health_names_the_one_that_is_not(
    app: Starlette, small: FakeTokenSource
) -> None:
    assert call(app, "/ready").status == call(app, "/health").status == 200
    for replicas in ([], [ReplicaSnapshot("r1", engine_snapshot(), 0.1, connected=False)]):
        small.replicas = replicas
        assert call(app, "/ready").status == 503
        health = call(app, "/health")
        assert health.status == 503
        assert {problem.split(": ")[0] for problem in health.json()["problems"]} == {"small"}


def test_status_says_whose_each_replica_is(
    app: Starlette, big: FakeTokenSource, small: FakeTokenSource
) -> None:
    big.replicas = [ReplicaSnapshot(name, engine_snapshot(), 0.1) for name in ("r1", "r2")]
    small.replicas = []
    big.held = AdmissionSnapshot(num_held_requests=3, num_placements={})
    first, second = call(app, "/status").json()["models"]
    assert (first["model"], second["model"]) == ("org/big", "small")
    assert [replica["replica_id"] for replica in first["replicas"]] == ["r1", "r2"]
    assert second["replicas"] == []
    assert first["admission"]["num_held_requests"] == 3
    assert second["admission"]["num_held_requests"] == 0


def test_placement_of_any_models_request_is_told(app: Starlette, small: FakeTokenSource) -> None:
    decision = Decision("r-1", Reason.COST, 1, 1, 1, (Candidate("r1", 0.0, 0, 1, 0, 0),))
    small.known_decisions["r"] = [decision]
    [found] = call(app, "/status/why/r").json()["decisions"]
    assert found["candidates"][0]["replica_id"] == "r1"
    assert call(app, "/status/why/s").status == 404


def test_metrics_tell_the_models_apart(
    app: Starlette, big: FakeTokenSource, small: FakeTokenSource
) -> None:
    big.replicas = [ReplicaSnapshot("r1", engine_snapshot(num_running=3), 0.1)]
    ask(app, "/v1/completions", "org/big")
    ask(app, "/v1/completions", "mini", n=2)
    small.error = Overloaded("Full.", "Wait.")
    ask(app, "/v1/completions", "small")
    ask(app, "/v1/completions", "gpt-5")
    small.held = AdmissionSnapshot(num_held_requests=4, num_placements={"cost": 7})
    samples = {}
    families = list(text_string_to_metric_families(call(app, "/metrics").body.decode()))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        for sample in family.samples:
            labels = dict(sample.labels)
            model = labels.pop("model_name", "")
            samples[sample.name, model, ",".join(labels.values())] = sample.value
    assert samples["pageray_requests_total", "org/big", "stop"] == 1
    assert samples["pageray_requests_total", "small", "stop"] == 2
    assert samples["pageray_time_to_first_token_seconds_count", "small", ""] == 1
    assert samples["pageray_requests_running", "org/big", "r1"] == 3
    assert samples["pageray_requests_running", "small", "r1"] == 0
    assert samples["pageray_http_errors_total", "small", "503"] == 1
    assert samples["pageray_held_requests", "small", ""] == 4
    assert samples["pageray_held_requests", "org/big", ""] == 0
    assert samples["pageray_placements_total", "small", "cost"] == 7
    # Of a model that is not served here.
    assert samples["pageray_http_errors_total", "", "404"] == 1
