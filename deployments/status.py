"""What operators and probes ask: is it alive, is it ready, what do the replicas hold."""

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deployments.door import Door
from deployments.http_errors import JSON, FrontendSilent, UnknownRequest
from deployments.http_settings import HttpSettings
from deployments.metrics import HttpMetrics, OwnFamilies
from deployments.peers import Decisions, Peers, split_answers
from deployments.served_model import ServedModel, ServedModels

logger = logging.getLogger("ray.serve")


def find_decisions(models: Iterable[ServedModel], request_id: str) -> Decisions:
    """Return this frontend's decisions on a request, an entry for each attempt."""
    return [
        dataclasses.asdict(decision)
        for model in models
        for decision in model.source.decisions(request_id)
    ]


class StatusRoutes:
    """Answers from the newest snapshots; none of these waits for an engine."""

    def __init__(
        self,
        models: ServedModels,
        settings: HttpSettings,
        metrics: HttpMetrics,
        door: Door,
        peers: Peers | None = None,
    ) -> None:
        """Take what there is to tell of; `peers`: all frontends, where there are more."""
        self._models = models
        self._peers = peers
        self._settings = settings
        self._metrics = metrics
        self._door = door

    async def health(self, request: Request) -> Response:
        """200 when every replica makes progress; 503 with what is wrong otherwise."""
        found = [
            f"{model.name}: {problem}" if len(self._models) > 1 else problem
            for model in self._models
            for problem in model.problems
        ]
        status = "unhealthy" if found else "healthy"
        return _json({"status": status, "problems": found}, 503 if found else 200)

    async def ready(self, request: Request) -> Response:
        """200 when every model takes requests, as one does that sleeps until the first comes."""
        ready = self._door.is_open and all(model.is_ready for model in self._models)
        return _json({"ready": ready}, 200 if ready else 503)

    async def status(self, request: Request) -> Response:
        """Every field of every snapshot, by model."""
        return _json({"models": [_describe(model) for model in self._models]})

    async def why(self, request: Request) -> Response:
        """Why a request went to its replica. Raises UnknownRequest, FrontendSilent."""
        request_id = request.path_params["request_id"]
        decisions = find_decisions(self._models, request_id)
        if not decisions and self._peers is not None:
            decisions = _merge(request_id, await self._peers.decisions(request_id))
        if not decisions:
            raise UnknownRequest(
                f"No request {request_id[:128]!r} was placed from here of late.",
                "Use the 'id' of an answer; the newest ten thousand are known.",
            )
        return _json({"request_id": request_id, "decisions": decisions})

    async def version(self, request: Request) -> Response:
        """The version of PageRay."""
        return _json({"version": self._settings.version})

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format: the engines, and what every frontend has measured."""
        others: list[OwnFamilies] = []
        if self._peers is not None:
            others, silent = split_answers(await self._peers.families())
            if silent:
                logger.warning("frontends did not say what they have measured: %r", silent)
        return Response(
            self._metrics.exposition(others), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


def _merge(request_id: str, answers: list[Decisions | BaseException]) -> Decisions:
    told, silent = split_answers(answers)
    decisions = [decision for answer in told for decision in answer]
    if silent and not decisions:
        # One of these may have placed it: to say that nobody has would be a guess.
        logger.warning("frontends did not say what they know of %s: %r", request_id, silent)
        raise FrontendSilent(
            f"A frontend did not answer; the others did not place {request_id[:128]!r}.",
            "Ask again in a moment.",
        )
    return decisions


def _describe(model: ServedModel) -> dict[str, Any]:
    replicas = [
        {
            "replica_id": snapshot.replica_id,
            "age_s": snapshot.age_s,
            "connected": snapshot.connected,
            **dataclasses.asdict(snapshot.engine),
        }
        for snapshot in model.source.snapshots()
    ]
    admission = dataclasses.asdict(model.source.admission())
    return {"model": model.name, "replicas": replicas, "admission": admission}


def _json(value: object, status_code: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status_code, media_type=JSON)
