"""Tenants over HTTP: what their key makes of their requests, and what it keeps them from."""

import hashlib
from typing import Any

import pytest

from deployments.args import AppArgs
from deployments.tenant import ApiKey, Tenant
from engine.errors import InvalidConfig
from engine.request import GenerateRequest
from tests.deployments.asgi_client import call
from tests.deployments.conftest import BuildApp
from tests.deployments.fake_token_source import FakeTokenSource

KEYS = tuple(
    ApiKey.read(entry, "test")
    for entry in (
        {"key": "sk-batch", "tenant": "acme", "weight": 0.5, "priority": 10},
        {"key": "sk-chat", "tenant": "acme", "weight": 2},
        {"key": "sk-fast", "tenant": "umbrella", "priority": -5},
    )
)
DIGEST = hashlib.sha256(b"sk-one").hexdigest()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_key_names_the_tenant_and_its_share(
    build_app: BuildApp, source: FakeTokenSource, path: str
) -> None:
    for key, tenant, weight in (("sk-batch", "acme", 0.5), ("sk-fast", "umbrella", 1.0)):
        request = ask(build_app, source, key, path)
        assert (request.tenant, request.weight) == (tenant, weight)


@pytest.mark.parametrize(
    ("key", "asked", "priority"),
    [
        ("sk-batch", {}, 10),
        ("sk-batch", {"priority": None}, 10),
        ("sk-batch", {"priority": -7}, 10),
        ("sk-batch", {"priority": 11}, 11),
        ("sk-chat", {}, 0),
        ("sk-chat", {"priority": -1}, 0),
        ("sk-fast", {}, -5),
        ("sk-fast", {"priority": -6}, -5),
        ("sk-fast", {"priority": 0}, 0),
        ("sk-plain", {}, 0),
        ("sk-plain", {"priority": -9}, -9),
    ],
)
def test_client_can_only_make_itself_less_urgent_than_its_key_allows(
    build_app: BuildApp, source: FakeTokenSource, key: str, asked: dict[str, Any], priority: int
) -> None:
    assert ask(build_app, source, key, **asked).priority == priority


def test_keys_of_one_tenant_share_its_cache_and_no_salt_reaches_anothers(
    build_app: BuildApp, source: FakeTokenSource
) -> None:
    salts = {key: ask(build_app, source, key).cache_salt for key in ("sk-batch", "sk-chat")}
    assert salts == {"sk-batch": "acme", "sk-chat": "acme"}
    assert ask(build_app, source, "sk-chat", cache_salt="s").cache_salt == "acme:s"
    # With a colon in its name, a tenant "acme:s" would share the cache of acme's salt s.
    with pytest.raises(InvalidConfig, match="tenant"):
        ApiKey.read({"key": "a", "tenant": "acme:s"}, "test")


def test_key_alone_is_a_tenant_named_by_its_digest(
    build_app: BuildApp, source: FakeTokenSource
) -> None:
    request = ask(build_app, source, "sk-plain")
    assert request.tenant == hashlib.sha256(b"sk-plain").hexdigest()[:16]
    assert request.weight == 1.0


def test_without_keys_all_are_one_tenant(build_app: BuildApp, source: FakeTokenSource) -> None:
    call(build_app(), "/v1/completions", {"prompt": "a"})
    assert (source.requests[-1].tenant, source.requests[-1].weight) == ("", 1.0)


def test_key_stays_with_whoever_gave_it() -> None:
    key = ApiKey.read({"key": "sk-one", "tenant": "acme"}, "test")
    assert key == ApiKey.read({"key_sha256": DIGEST.upper(), "tenant": "acme"}, "test")
    assert key.to_tenant() == Tenant("acme", 1.0, 0)
    args = AppArgs(api_keys=(key, ApiKey.of("sk-two")))
    stored = args.model_dump(mode="json")
    assert AppArgs.model_validate(stored) == args
    assert (
        AppArgs.model_validate({"api_keys": [{"key": "sk-one", "tenant": "acme"}, "sk-two"]})
        == args
    )
    for text in (repr(args), str(stored), args.model_dump_json()):
        assert "sk-" not in text


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ("sk-secret", "is no mapping"),
        ({"tenant": "a"}, "neither `key` nor `key_sha256`"),
        ({"key": "sk-secret", "key_sha256": DIGEST, "tenant": "a"}, "both `key` and"),
        ({"key": 12345678, "tenant": "a"}, "the key is no text"),
        ({"key": None, "tenant": "a"}, "the key is no text"),
        ({"key": "  ", "tenant": "a"}, "the key is empty"),
        ({"key_sha256": "sk-secret", "tenant": "a"}, "key_sha256"),
        ({"key_sha256": None, "tenant": "a"}, "key_sha256"),
        ({"key": "sk-secret"}, "tenant"),
        ({"key": "sk-secret", "tenant": ""}, "tenant"),
        ({"key": "sk-secret", "tenant": 7}, "tenant"),
        ({"key": "sk-secret", "tenant": "a", "weight": 0}, "weight"),
        ({"key": "sk-secret", "tenant": "a", "weight": -1.5}, "weight"),
        ({"key": "sk-secret", "tenant": "a", "weight": float("nan")}, "weight"),
        ({"key": "sk-secret", "tenant": "a", "weight": float("inf")}, "weight"),
        ({"key": "sk-secret", "tenant": "a", "weight": 1e-300}, "weight"),
        ({"key": "sk-secret", "tenant": "a", "weight": "2"}, "weight"),
        ({"key": "sk-secret", "tenant": "a", "weight": None}, "weight"),
        ({"key": "sk-secret", "tenant": "a", "priority": 0.5}, "priority"),
        ({"key": "sk-secret", "tenant": "a", "priority": True}, "priority"),
        ({"key": "sk-secret", "tenant": "a", "priority": 2**31}, "priority"),
        ({"key": "sk-secret", "tenant": "a", "wieght": 2}, "wieght"),
        ({"key": "sk-secret", "tenant": "a", 5: 2}, "5"),
    ],
)
def test_wrong_entry_is_refused_by_place_and_field_without_its_key(
    entry: object, cause: str
) -> None:
    with pytest.raises(InvalidConfig) as error:
        ApiKey.read(entry, "keys.yaml: entry 3")
    assert error.value.cause.startswith("keys.yaml: entry 3")
    assert cause in error.value.cause
    assert error.value.fix
    assert "secret" not in str(error.value)
    assert "12345678" not in str(error.value)


def ask(
    build_app: BuildApp,
    source: FakeTokenSource,
    key: str,
    path: str = "/v1/completions",
    **fields: Any,
) -> GenerateRequest:
    """What reaches the engine of a request with this key."""
    app = build_app(api_keys=(*KEYS, ApiKey.of("sk-plain")))
    prompt = (
        {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "a"}
    )
    response = call(app, path, {**prompt, **fields}, {"Authorization": f"Bearer {key}"})
    assert response.status == 200
    return source.requests[-1]
