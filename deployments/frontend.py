"""The Frontend deployment: the HTTP application on top of the cluster's token sources."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from cluster.admission import Admission
from cluster.boards import find_board
from deployments.args import AppArgs, ModelArgs
from deployments.door import Door
from deployments.http_app import build_http_app, build_metrics
from deployments.http_settings import HttpSettings
from deployments.metrics import OwnFamilies
from deployments.peers import Decisions
from deployments.serve_peers import FRONTEND, ServePeers
from deployments.served_model import ServedModel
from deployments.status import find_decisions
from deployments.token_source import ServeTokenSource
from engine.model_store import resolve_model
from engine.tokenizer import Tokenizer


@serve.ingress()
class Frontend:
    """Parses, renders, tokenizes, streams. Ready once a first replica of every model is."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: AppArgs, replicas: Mapping[str, DeploymentHandle[Any]]
    ) -> None:
        self._models = await asyncio.gather(
            *(_connect(model, args.cache_dir, replicas[model.model_name]) for model in args.models)
        )
        self._door = Door()
        self._tracing = None
        if args.trace_export is not None:
            self._tracing = args.trace_export.open(_frontend_id())
        self._metrics = build_metrics(self._models, _frontend_id())
        self._http_app: Starlette = build_http_app(
            self._models,
            HttpSettings.from_args(args),
            ServePeers(args.num_frontends) if args.num_frontends > 1 else None,
            self._door,
            self._metrics,
            None if self._tracing is None else self._tracing.get_tracer("pageray"),
        )

    async def close(self, *, turn_out: bool = False) -> int:
        """Let no more requests in; return how many have not been answered in full.

        `turn_out`: they have had their time.
        """
        self._door.close()
        if turn_out:
            self._door.turn_out()
        return self._door.num_inside

    async def decisions(self, request_id: str) -> Decisions:
        """Why this frontend placed a request where it did; for the other frontends."""
        return find_decisions(self._models, request_id)

    async def families(self) -> OwnFamilies:
        """What this frontend has measured; for the other frontends."""
        return self._metrics.frontend_id, self._metrics.own_families()

    def __del__(self) -> None:
        """Send the spans that are left, once Serve has drained it."""
        tracing = getattr(self, "_tracing", None)
        if tracing is not None:
            tracing.shutdown()

    async def __serve_build_asgi_app__(self) -> Starlette:
        """The application, built late because it needs the replicas (Serve hook)."""
        return self._http_app


async def _connect(
    args: ModelArgs, cache_dir: Path, replicas: DeploymentHandle[Any]
) -> ServedModel:
    path = await asyncio.to_thread(
        resolve_model, args.model, cache_dir=cache_dir, needs_weights=args.needs_weights
    )
    tokenizer = await asyncio.to_thread(Tokenizer.from_folder, path)
    board = find_board(args.model_name)
    admission = Admission(
        board,
        args.admission_limits(),
        model_name=args.model_name,
        block_size=args.cached_block_size,
        ttft_objective_s=args.ttft_objective_s,
    )
    source = ServeTokenSource(replicas, board, admission, _frontend_id())
    source.start()
    description = await replicas.describe.remote()
    return ServedModel(
        args.model_name,
        max_model_len=description["max_model_len"],
        tokenizer=tokenizer,
        source=source,
        may_sleep=args.replicas_min == 0,
    )


def _frontend_id() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


FrontendDeployment = serve.deployment(name=FRONTEND)(Frontend)
