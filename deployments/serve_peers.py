"""Asks the frontends of a Serve application; what they ask each other is in peers.py."""

import asyncio
from typing import Any, Final

from ray import serve
from ray.serve.exceptions import RayServeException

from deployments.metrics import OwnFamilies
from deployments.peers import Decisions

APP_NAME: Final = "pageray"
FRONTEND: Final = "Frontend"
"""Names of the application and of the deployment."""
TIMEOUT_S: Final = 5.0


class ServePeers:
    """See Peers. Asks over a handle, whose router knows who is there."""

    def __init__(self, num_frontends: int) -> None:
        self._num_frontends = num_frontends

    async def decisions(self, request_id: str) -> list[Decisions | BaseException]:
        """See Peers."""
        return await self._ask("decisions", request_id)

    async def families(self) -> list[OwnFamilies | BaseException]:
        """See Peers."""
        return await self._ask("families")

    async def _ask(self, method: str, *arguments: str) -> list[Any | BaseException]:
        # Not to be looked up first: that would hold up the event loop while the controller is away.
        frontends = serve.get_deployment_handle(
            FRONTEND, serve.get_replica_context().app_name, _check_exists=False
        )
        answers: list[Any | BaseException]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                results = await frontends.broadcast(
                    method, *arguments
                )._fetch_replica_results_async()
            # One by one: whoever is silent takes the answers of no other along.
            answers = await asyncio.gather(
                *(asyncio.wait_for(result.get_async(), TIMEOUT_S) for result in results),
                return_exceptions=True,
            )
        except (TimeoutError, RayServeException) as error:
            return [error]
        # One that Serve has not told us of yet, or that is being replaced, knows things as well.
        unknown = [LookupError("not heard of")] * (self._num_frontends - len(answers))
        return [*answers, *unknown]
