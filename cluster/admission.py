"""How the requests of one frontend get their replicas: a place in the queue, sessions, demand."""

import asyncio

from cluster.admission_limits import AdmissionLimits
from cluster.admission_queue import AdmissionQueue, Ticket
from cluster.attainment import Attainment
from cluster.board import Board
from cluster.held_requests import HeldRequests
from cluster.messages import Demand
from cluster.prefix_index import prompt_keys
from cluster.request_need import RequestNeed
from cluster.sessions import Sessions
from cluster.snapshot import AdmissionSnapshot
from engine.errors import DeadlinePassed, Overloaded
from engine.request import GenerateRequest


class Admission:
    """Admits requests for one model. Lives on one event loop, whose clock all times are on."""

    def __init__(
        self,
        board: Board,
        limits: AdmissionLimits,
        *,
        model_name: str,
        block_size: int | None,
        ttft_objective_s: float,
    ) -> None:
        """Take what belongs to the model; `block_size` is None where no prefixes are cached."""
        clock = asyncio.get_running_loop().time
        self._board = board
        self._model_name = model_name
        self._block_size = block_size
        self._queue = AdmissionQueue(board, limits, clock)
        self._held = HeldRequests(self._queue)
        self._sessions = Sessions(clock)
        self._attainment = Attainment(ttft_objective_s, clock)
        self._clock = clock

    async def place(
        self, request: GenerateRequest, arrived_s: float, *, was_placed: bool = False
    ) -> GenerateRequest:
        """Wait for a replica with room; return the request with what is left of its deadline.

        One that `was_placed` before is not refused for what else waits.
        The board then knows the replica. Call `end` in any case. Raises Overloaded, DeadlinePassed.
        """
        session = None
        if request.session_id and self._block_size is not None:
            session = self._sessions.find(request.tenant, request.session_id)
        keys: tuple[int, ...] = ()
        if len(self._board.members()) > 1:
            keys = prompt_keys(request, self._model_name, self._block_size)
        ticket = Ticket(
            need=RequestNeed.of(request, keys, session),
            tenant=request.tenant,
            weight=request.weight,
            priority=request.priority,
            arrived_s=arrived_s,
            was_placed=was_placed,
            has_begun=request.num_emitted_tokens > 0,
        )
        if request.deadline_s is not None:
            ticket.deadline_s = arrived_s + request.deadline_s
        try:
            await self._held.place(ticket)
        except (Overloaded, DeadlinePassed):
            self._attainment.add(float("inf"))
            raise
        return request.later(self._clock() - arrived_s)

    def note_first_token(self, arrived_s: float) -> None:
        """A request that came then has its first token."""
        self._attainment.add(self._clock() - arrived_s)

    def end(self, request: GenerateRequest, num_output_tokens: int) -> None:
        """A request is over, whether it waited or ran."""
        replica_id = self._board.placement(request.request_id)
        if request.session_id and replica_id is not None and num_output_tokens:
            num_tokens = len(request.prompt_token_ids) + num_output_tokens
            self._sessions.note(request.tenant, request.session_id, replica_id, num_tokens)
        self._held.end(request.request_id, num_output_tokens)

    def wake(self) -> None:
        """Something has changed: look soon whether anybody has room by now."""
        self._held.wake()

    def snapshot(self) -> AdmissionSnapshot:
        """What is held back, and what has been placed."""
        return self._queue.snapshot()

    def demand(self) -> Demand:
        """What the autoscaler has to know of this frontend."""
        return Demand(len(self._queue), self._queue.num_tokens, self._attainment.share)
