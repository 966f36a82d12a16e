"""Lets in who sends a known API key, and tells tenants apart by it."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http_errors import AdminOnly, InvalidApiKey
from deployments.tenant import ApiKey, Tenant

OPEN_PATHS: Final = frozenset({"/health", "/ready", "/metrics", "/version", "/openapi.json"})
_TENANT: Final = "pageray.tenant"
_ANYBODY: Final = Tenant()


def tenant_of(scope: Scope) -> Tenant:
    """The tenant who sent the request; one without a name when no keys are asked for."""
    tenant: Tenant = scope.get(_TENANT, _ANYBODY)
    return tenant


class ApiKeyMiddleware:
    """Asks for `Authorization: Bearer KEY` everywhere but at the open paths.

    Once there is an admin's key, metrics and status are for those alone. Who generates needs a key
    once there is one that is no admin's.
    """

    def __init__(self, app: ASGIApp, api_keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._tenants = [(bytes.fromhex(key.key_sha256), key.to_tenant()) for key in api_keys]
        self._has_admins = any(key.admin for key in api_keys)
        self._asks_all = any(not key.admin for key in api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            is_for_admins = self._has_admins and shows_the_service(scope["path"])
            if is_for_admins or (self._asks_all and scope["path"] not in OPEN_PATHS):
                tenant = self._find_tenant(Headers(scope=scope).get("authorization", ""))
                if is_for_admins and not tenant.is_admin:
                    raise AdminOnly(
                        "This API key may not see metrics and status.", "Send an admin's key."
                    )
                scope[_TENANT] = tenant
        await self._app(scope, receive, send)

    def _find_tenant(self, authorization: str) -> Tenant:
        scheme, _, key = authorization.partition(" ")
        # Headers arrive as latin-1; keys are compared as digests, so that neither their length
        # nor their first characters show in the time it takes.
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        found: Tenant | None = None
        for known, tenant in self._tenants:  # all of them, in whatever place it stands
            if hmac.compare_digest(digest, known):
                found = tenant
        if scheme.lower() != "bearer" or found is None:
            raise InvalidApiKey(
                "The API key is missing or not known here.",
                "Send the header 'Authorization: Bearer KEY' with a valid key.",
            )
        return found


def shows_the_service(path: str) -> bool:
    """Whether a path is for admins, where there are any."""
    return path in ("/metrics", "/status") or path.startswith("/status/")
