"""Lets in who sends a known API key, and tells tenants apart by it."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http_errors import InvalidApiKey

OPEN_PATHS: Final = frozenset({"/health", "/ready", "/metrics", "/version"})
_TENANT: Final = "pageray.tenant"


def tenant_of(scope: Scope) -> str:
    """Name of the tenant who sent the request; empty when no keys are asked for."""
    tenant: str = scope.get(_TENANT, "")
    return tenant


class ApiKeyMiddleware:
    """Asks for `Authorization: Bearer KEY` everywhere but at the open paths."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if self._digests and scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            scope[_TENANT] = self._find_tenant(Headers(scope=scope).get("authorization", ""))
        await self._app(scope, receive, send)

    def _find_tenant(self, authorization: str) -> str:
        scheme, _, key = authorization.partition(" ")
        # Headers arrive as latin-1; keys are compared as digests, so that neither their length
        # nor their first characters show in the time it takes.
        digest = _digest(key.strip().encode("latin-1"))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise InvalidApiKey(
                "The API key is missing or not known here.",
                "Send the header 'Authorization: Bearer KEY' with a valid key.",
            )
        return digest.hex()[:16]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
