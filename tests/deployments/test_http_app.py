"""Routes for operators and tools, API keys, request ids, and what is open to whom."""

from typing import Any

import pytest
from starlette.applications import Starlette

from cluster.snapshot import ReplicaSnapshot
from deployments.args import AppArgs
from deployments.http_settings import HttpSettings
from deployments.tenant import ApiKey
from engine.snapshot import EngineState
from engine.tokenizer import Tokenizer
from tests.deployments.asgi_client import call
from tests.deployments.conftest import BuildApp
from tests.deployments.fake_token_source import FakeTokenSource, engine_snapshot


def replica(name: str = "r1", age_s: float = 0.1, **fields: Any) -> ReplicaSnapshot:
    connected = fields.pop("connected", True)
    return ReplicaSnapshot(name, engine_snapshot(**fields), age_s, connected)


@pytest.mark.parametrize(
    ("replicas", "healthy", "ready"),
    [
        ([replica()], True, True),
        ([replica(), replica("r2", step_age_s=4.5)], False, True),
        ([replica(step_age_s=3.5)], True, True),
        ([replica(age_s=3.5)], False, False),
        ([replica(state=EngineState.DRAINING)], False, False),
        ([replica(connected=False)], False, False),
        ([], False, False),
    ],
)
def test_health_is_progress_and_ready_is_one_serving_replica(
    app: Starlette,
    source: FakeTokenSource,
    replicas: list[ReplicaSnapshot],
    healthy: bool,
    ready: bool,
) -> None:
    source.replicas = replicas
    health = call(app, "/health")
    assert health.status == (200 if healthy else 503)
    assert bool(health.json()["problems"]) != healthy
    assert call(app, "/ready").status == (200 if ready else 503)


def test_a_deployment_that_may_sleep_is_ready_without_replicas(
    build_app: BuildApp, source: FakeTokenSource
) -> None:
    app = build_app(may_sleep=True)
    for replicas, status in (([], 200), ([replica(connected=False)], 503)):
        source.replicas = replicas
        assert call(app, "/health").status == call(app, "/ready").status == status


def test_status_shows_every_field_of_every_replica(app: Starlette, source: FakeTokenSource) -> None:
    source.replicas = [replica("r1"), replica("r2", num_running=3, connected=False)]
    [body] = call(app, "/status").json()["models"]
    assert body["model"] == "tiny"
    first, second = body["replicas"]
    assert first["replica_id"] == "r1"
    assert first["num_free_blocks"] == 60
    assert first["state"] == "serving"
    assert (second["num_running"], second["connected"]) == (3, False)


def test_version(app: Starlette) -> None:
    assert call(app, "/version").json() == {"version": "1.2.3"}


def test_models_lists_the_model_and_its_aliases(build_app: BuildApp) -> None:
    app = build_app(aliases=("org/other",))
    data = call(app, "/v1/models").json()["data"]
    assert [model["id"] for model in data] == ["tiny", "org/other"]
    assert {model["root"] for model in data} == {"tiny"}
    assert call(app, "/v1/models/org/other").json()["max_model_len"] == 512


def test_tokenize_and_detokenize_are_inverse(app: Starlette, tokenizer: Tokenizer) -> None:
    body = call(app, "/tokenize", {"model": "tiny", "prompt": "Once 🗼"}).json()
    assert body == {
        "count": len(body["tokens"]),
        "max_model_len": 512,
        "tokens": tokenizer.encode("Once 🗼"),
    }
    back = call(app, "/detokenize", {"model": "tiny", "tokens": body["tokens"]}).json()
    assert back == {"prompt": "Once 🗼"}


def test_long_texts_and_lists_give_the_same_tokens_off_the_event_loop(
    build_app: BuildApp, tokenizer: Tokenizer
) -> None:
    app = build_app(max_model_len=100_000)
    text = "Once upon a time 🗼 " * 3000
    body = call(app, "/tokenize", {"prompt": text}).json()
    assert body["tokens"] == tokenizer.encode(text)
    assert call(app, "/detokenize", {"tokens": body["tokens"]}).json() == {"prompt": text}


def test_tokenize_counts_a_chat_as_the_chat_endpoint_does(
    app: Starlette, source: FakeTokenSource
) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    for extra in ({}, {"add_generation_prompt": False}, {"continue_final_message": True}):
        body = {"messages": messages, **extra}
        tokens = call(app, "/tokenize", {**body, "return_token_strs": True}).json()
        call(app, "/v1/chat/completions", body)
        assert tokens["tokens"] == source.requests[-1].prompt_token_ids
        assert len(tokens["token_strs"]) == tokens["count"]


@pytest.mark.parametrize("tokens", [None, "x", 5, [1.5], [True], [-1], [10**6], [2**70], [1] * 513])
def test_detokenize_refuses_what_is_no_list_of_known_tokens(app: Starlette, tokens: Any) -> None:
    response = call(app, "/detokenize", {"tokens": tokens})
    assert response.status == 400
    assert response.json()["error"]["param"] == "tokens"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/models", None),
        ("/tokenize", {"prompt": "Hi"}),
        ("/detokenize", {"tokens": [1]}),
        ("/status", None),
    ],
)
def test_keys_guard_everything_that_shows_or_makes_text(
    build_app: BuildApp, path: str, body: dict[str, Any] | None
) -> None:
    app = build_app(api_keys=(ApiKey.of("sk-one"), ApiKey.of("sk-twö")))
    for key in ("sk-one", "sk-twö".encode().decode("latin-1")):
        assert call(app, path, body, {"Authorization": f"Bearer {key}"}).status == 200
        assert call(app, path, body, {"Authorization": f"bearer  {key}"}).status == 200
    for headers in (
        {},
        {"Authorization": "sk-one"},
        {"Authorization": "Basic sk-one"},
        {"Authorization": "Bearer sk-on"},
        {"Authorization": "Bearer sk-one sk-one"},
        {"Authorization": "Bearer \xff\xfe"},
    ):
        response = call(app, path, body, headers)
        assert response.status == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"
        assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/version", "/openapi.json"])
def test_probes_and_the_document_need_no_key(build_app: BuildApp, path: str) -> None:
    assert call(build_app(api_keys=(ApiKey.of("sk-one"),)), path).status == 200


ADMIN_KEYS = (ApiKey.of("sk-admin", admin=True), ApiKey.of("sk-one"))


@pytest.mark.parametrize("path", ["/metrics", "/status", "/status/why/chatcmpl-1"])
def test_where_there_is_an_admins_key_it_alone_shows_the_service(
    build_app: BuildApp, path: str
) -> None:
    seen = 404 if "why" in path else 200
    for keys in (ADMIN_KEYS, ADMIN_KEYS[:1]):
        app = build_app(api_keys=keys)
        assert call(app, path, headers={"Authorization": "Bearer sk-admin"}).status == seen
        assert call(app, path).status == 401
    response = call(
        build_app(api_keys=ADMIN_KEYS), path, headers={"Authorization": "Bearer sk-one"}
    )
    assert response.status == 403
    assert response.json()["error"]["code"] == "admin_key_required"


@pytest.mark.parametrize(("keys", "status"), [(ADMIN_KEYS, 401), (ADMIN_KEYS[:1], 200)])
def test_an_admins_key_alone_asks_nobody_else_for_one(
    build_app: BuildApp, keys: tuple[ApiKey, ...], status: int
) -> None:
    assert call(build_app(api_keys=keys), "/v1/completions", {"prompt": "Hi"}).status == status
    for path in ("/health", "/ready", "/version"):
        assert call(build_app(api_keys=keys), path).status == 200


def test_tenants_never_share_cached_prefixes(build_app: BuildApp, source: FakeTokenSource) -> None:
    app = build_app(api_keys=(ApiKey.of("sk-one"), ApiKey.of("sk-two")))
    for key in ("sk-one", "sk-two"):
        for salt in ({}, {"cache_salt": "s"}):
            headers = {"Authorization": f"Bearer {key}"}
            assert call(app, "/v1/completions", {"prompt": "a", **salt}, headers).status == 200
    salts = [request.cache_salt for request in source.requests]
    assert len(set(salts)) == 4
    assert not any("sk-" in salt for salt in salts)


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [("abc-1.2_3", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("", False)],
)
def test_request_id_is_echoed_when_valid_and_made_otherwise(
    app: Starlette, sent: str, echoed: bool
) -> None:
    for path in ("/health", "/nothing", "/v1/completions"):
        response = call(app, path, headers={"x-request-id": sent})
        assert (response.headers["x-request-id"] == sent) is echoed
        assert response.headers["x-request-id"]


def test_under_ray_serve_the_request_id_is_left_to_it(build_app: BuildApp) -> None:
    settings = HttpSettings.from_args(AppArgs(api_keys=(ApiKey.of("sk-1"),)))
    assert settings.api_keys == (ApiKey.of("sk-1"),)
    app = build_app(echo_request_id=settings.echo_request_id)
    assert "x-request-id" not in call(app, "/health").headers
