"""GET /v1/models: the names of the models that are served."""

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deployments.http_errors import JSON
from deployments.served_model import ServedModel, ServedModels


class ModelRoutes:
    """Lists and describes the models and their aliases."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models
        self._created = int(time.time())

    async def list(self, request: Request) -> Response:
        """All names."""
        data = [self._describe(name, model) for model in self._models for name in model.names]
        return Response(msgspec.json.encode({"object": "list", "data": data}), media_type=JSON)

    async def get(self, request: Request) -> Response:
        """One name. Raises ModelNotFound."""
        name = request.path_params["model"]
        body = self._describe(name, self._models.find(name))
        return Response(msgspec.json.encode(body), media_type=JSON)

    def _describe(self, name: str, model: ServedModel) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "pageray",
            "root": model.name,
            "parent": None,
            "max_model_len": model.max_model_len,
        }
