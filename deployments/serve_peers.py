"""Asks the frontends of a Serve application; what they ask each other is in peers.py."""

from typing import Any, Final

from ray import serve

from deployments.metrics import OwnFamilies
from deployments.peers import Decisions

FRONTEND: Final = "Frontend"
"""Name of the deployment."""
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
        frontends = serve.get_deployment_handle(FRONTEND, serve.get_replica_context().app_name)
        try:
            answers: list[Any] = await frontends.broadcast(method, *arguments).results_async(
                timeout_s=TIMEOUT_S, return_exceptions=True
            )
        except TimeoutError as error:
            return [error]
        # One that Serve has not told us of yet, or that is being replaced, knows things as well.
        unknown = [LookupError("not heard of")] * (self._num_frontends - len(answers))
        return answers + unknown
