"""A token client for each replica of a model, as replicas come and go. Lives on one event loop."""

import asyncio
from collections.abc import Callable

from cluster.board import Board
from cluster.messages import Demand, Frame
from cluster.token_client import TokenClient
from engine.request import GenerateRequest


class TokenClients:
    """Follows the board's members.

    A draining replica has left the members but still finishes what it has, and what is on its way
    to it: its client goes when nothing uses it any more.
    """

    def __init__(
        self,
        board: Board,
        peer_id: str,
        *,
        on_frame: Callable[[str, Frame], None],
        on_lost: Callable[[str, str], None],
        is_used: Callable[[str], bool],
    ) -> None:
        """Take what each client is given, see `TokenClient`, and how to learn who needs one."""
        self._board = board
        self._peer_id = peer_id
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._is_used = is_used
        self._clients: dict[str, TokenClient] = {}

    def start(self, on_change: Callable[[], None]) -> None:
        """Follow them from now on, and call `on_change` whenever they have changed."""
        loop = asyncio.get_running_loop()

        def follow() -> None:
            self._follow()
            on_change()

        def notify() -> None:
            loop.call_soon_threadsafe(follow)

        self._board.subscribe(notify)
        self._follow()

    def submit(self, replica_id: str | None, request: GenerateRequest) -> None:
        """Hand a request to an engine, if it can be reached. Raises InvalidRequest."""
        client = self._clients.get(replica_id or "")
        if client is not None:
            client.submit(request)

    def abort(self, replica_id: str | None, request_id: str, choice_index: int | None) -> None:
        """End a request there, or a choice of it."""
        client = self._clients.get(replica_id or "")
        if client is not None:
            client.abort(request_id, choice_index)

    def tell(self, demand: Demand) -> None:
        """Tell all engines what is held back."""
        for client in self._clients.values():
            client.tell(demand)

    def close_unused(self) -> None:
        """Leave the replicas that are no members and have nothing of ours."""
        for replica_id in self._clients.keys() - self._board.members().keys():
            if not self._is_used(replica_id):
                self._clients.pop(replica_id).close()

    def _follow(self) -> None:
        for replica_id, member in self._board.members().items():
            if replica_id not in self._clients:
                client = TokenClient(
                    replica_id,
                    member["address"],
                    token=member["token"],
                    peer_id=self._peer_id,
                    on_frame=self._on_frame,
                    on_lost=self._on_lost,
                )
                self._clients[replica_id] = client
                client.start()
        self.close_unused()
