"""The Frontend deployment: the HTTP application on top of the cluster's token sources."""

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from cluster.admission import Admission
from cluster.boards import find_board
from deployments.args import AppArgs, ModelArgs
from deployments.door import Door
from deployments.http_app import build_http_app
from deployments.http_settings import HttpSettings
from deployments.served_model import ServedModel
from deployments.status import FrontendAnswer, find_decisions
from deployments.token_source import ServeTokenSource
from engine.model_store import resolve_model
from engine.tokenizer import Tokenizer

NAME: Final = "Frontend"
ANSWER_TIMEOUT_S: Final = 5.0
"""For what frontends ask each other."""


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
        self._http_app: Starlette = build_http_app(
            self._models,
            HttpSettings.from_args(args),
            partial(_ask_frontends, args.num_frontends) if args.num_frontends > 1 else None,
            self._door,
        )

    async def close(self, *, turn_out: bool = False) -> int:
        """Let no more requests in; return how many have not been answered in full.

        `turn_out`: they have had their time.
        """
        self._door.close()
        if turn_out:
            self._door.turn_out()
        return self._door.num_inside

    async def decisions(self, request_id: str) -> list[dict[str, Any]]:
        """Why this frontend placed a request where it did; for the other frontends."""
        return find_decisions(self._models, request_id)

    async def __serve_build_asgi_app__(self) -> Starlette:
        """The application, built late because it needs the replicas (Serve hook)."""
        return self._http_app


async def _ask_frontends(num_frontends: int, request_id: str) -> list[FrontendAnswer]:
    frontends = serve.get_deployment_handle(NAME, serve.get_replica_context().app_name)
    try:
        answers: list[FrontendAnswer] = await frontends.broadcast(
            "decisions", request_id
        ).results_async(timeout_s=ANSWER_TIMEOUT_S, return_exceptions=True)
    except TimeoutError as error:
        return [error]
    # One that Serve has not told us of yet, or that is being replaced, may have placed it too.
    unknown = [LookupError("not heard of")] * (num_frontends - len(answers))
    return answers + unknown


async def _connect(
    args: ModelArgs, cache_dir: Path, replicas: DeploymentHandle[Any]
) -> ServedModel:
    path = await asyncio.to_thread(
        resolve_model, args.model, cache_dir=cache_dir, needs_weights=args.needs_weights
    )
    tokenizer = await asyncio.to_thread(Tokenizer.from_folder, path)
    frontend_id = serve.get_replica_context().replica_id.unique_id
    board = find_board(args.model_name)
    admission = Admission(
        board,
        args.admission_limits(),
        model_name=args.model_name,
        block_size=args.cached_block_size,
        ttft_objective_s=args.ttft_objective_s,
    )
    source = ServeTokenSource(replicas, board, admission, frontend_id)
    source.start()
    description = await replicas.describe.remote()
    return ServedModel(
        args.model_name,
        max_model_len=description["max_model_len"],
        tokenizer=tokenizer,
        source=source,
        may_sleep=args.replicas_min == 0,
    )


FrontendDeployment = serve.deployment(name=NAME)(Frontend)
