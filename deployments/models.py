"""GET /v1/models: the names of the model that is served."""

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deployments.dialect import check_model
from deployments.http_errors import JSON
from deployments.http_settings import HttpSettings


class ModelRoutes:
    """Lists and describes the model and its aliases."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._created = int(time.time())

    async def list(self, request: Request) -> Response:
        """All names."""
        data = [self._describe(name) for name in self._settings.model_names]
        return Response(msgspec.json.encode({"object": "list", "data": data}), media_type=JSON)

    async def get(self, request: Request) -> Response:
        """One name. Raises ModelNotFound."""
        name = request.path_params["model"]
        check_model(name, self._settings)
        return Response(msgspec.json.encode(self._describe(name)), media_type=JSON)

    def _describe(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "pageray",
            "root": self._settings.model_name,
            "parent": None,
            "max_model_len": self._settings.max_model_len,
        }
