"""HTTP client of `pageray chat`, `status` and `batch`: every failure becomes a cause and a fix."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from engine.errors import PageRayError

TIMEOUT = httpx2.Timeout(10.0, read=600.0)
"""An answer may wait long in a queue; a server that does not even listen may not."""


def open_client(url: str, api_key: str | None, *, trust_env: bool = True) -> httpx2.Client:
    """A client of the service at `url`, with or without a trailing /v1.

    `trust_env`: the environment may name a proxy on the way to it.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    base_url = url.rstrip("/").removesuffix("/v1")
    return httpx2.Client(base_url=base_url, headers=headers, timeout=TIMEOUT, trust_env=trust_env)


def get_json(client: httpx2.Client, path: str) -> dict[str, Any]:
    """The JSON object at `path`."""
    with explained(client):
        response = client.get(path)
        check(response)
        value = response.json()
    if not isinstance(value, dict):
        raise PageRayError(
            f"{client.base_url} answers {path} with something else than PageRay does.",
            "Check --url.",
        )
    return value


@contextmanager
def explained(client: httpx2.Client) -> Iterator[None]:
    """Turn errors of the connection into PageRayError."""
    try:
        yield
    except httpx2.ConnectError as error:
        raise PageRayError(
            f"Nobody listens at {client.base_url}.",
            "Start a service with `pageray serve`, or name another one with --url.",
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise PageRayError(
            f"{client.base_url} did not answer as it should: {error or type(error).__name__}.",
            "Look at the log of `pageray serve`, or check --url.",
        ) from error
    except json.JSONDecodeError as error:
        raise PageRayError(
            f"{client.base_url} answers with something else than JSON.", "Check --url."
        ) from error


def check(response: httpx2.Response) -> None:
    """Raise when the response is an error, with the server's own words."""
    if response.is_success:
        return
    response.read()
    fix = "Check what was asked for, --url and --api-key."
    try:
        message = error_message(response.json())
    except json.JSONDecodeError:
        message = response.reason_phrase
    raise PageRayError(f"{response.url} answers {response.status_code}: {message}", fix)


def error_message(body: Any) -> str:
    """The message in a JSON error body of OpenAI's shape."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
