"""Ray Serve's request router, as a thin adapter to the placement on the board.

Ray pickles the class by value into each process, so this module keeps no state of its own.
"""

import logging
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from cluster.boards import find_board
from cluster.policies import POLICIES
from cluster.prefix_index import prompt_keys
from cluster.request_need import RequestNeed
from engine.request import GenerateRequest

logger = logging.getLogger("ray.serve")


class KVBlockRouter(RequestRouter):
    """Places every generate call where its KV blocks fit best; other calls anywhere."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Find the board of this deployment (called by Serve with request_router_kwargs)."""
        self._model_name: str = kwargs["model_name"]
        self._block_size: int | None = kwargs["block_size"]
        self._board = find_board(self._model_name)
        self._board.set_policy(POLICIES[kwargs["policy"]])

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Tell the board who is there, with each replica's address and token."""
        super().update_replicas(replicas)
        self._board.set_members(
            {replica.replica_id.unique_id: replica.replica_metadata for replica in replicas}
        )

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replica that admission chose, or none for a retry after the back-off."""
        try:
            request = _request_of(pending_request)
            if pending_request is None or request is None:
                return [candidate_replicas]
            # Without this Serve spins while no replica can be chosen.
            pending_request.routing_context.should_backoff = True
            by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
            chosen = self._board.placement(request.request_id)
            if chosen not in by_id:
                # The replica is gone since, or the request is over. If it is not, it has waited
                # for its turn: any queue will do now.
                keys = prompt_keys(request, self._model_name, self._block_size)
                chosen = self._board.choose_again(RequestNeed.of(request, keys), by_id.keys())
            if chosen is None:
                # It is over: the replica that had it knows, and ends the call at once.
                chosen = self._board.last_placement(request.request_id)
            return [[by_id[chosen]]] if chosen in by_id else []
        except Exception:
            # Serve would leave the request hanging for ever; any replica is better.
            logger.exception("placement failed; the request goes to any replica")
            return [candidate_replicas]

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Stop placing on a dead replica before the controller says so."""
        super().on_replica_actor_died(replica_id)
        self._board.mark_lost(replica_id.unique_id)


def _request_of(pending_request: PendingRequest | None) -> GenerateRequest | None:
    arguments: list[Any] = list(pending_request.args) if pending_request else []
    found = [argument for argument in arguments if isinstance(argument, GenerateRequest)]
    return found[0] if found else None
