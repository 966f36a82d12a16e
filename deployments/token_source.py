"""Runs requests on the cluster: control through a Serve handle, tokens from the engines.

A request waits until a replica has room for it. Then it goes to that replica's engine on the stream
that the tokens come on, a frame per step; and beside it in one unary call through the request
router, which stays open until the request ends and brings the request where the stream did not. A
request whose replica dies before its first token is placed again, unseen by its client.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from ray.serve.handle import DeploymentHandle

from cluster.admission import Admission
from cluster.board import Board
from cluster.decision import Decision
from cluster.messages import Demand, Frame, WireError
from cluster.snapshot import AdmissionSnapshot, ReplicaSnapshot
from cluster.token_client import TokenClient
from deployments.attempt import Attempt
from engine.errors import Overloaded, PageRayError, ReplicaLost
from engine.output import TokenOutput
from engine.request import GenerateRequest

logger = logging.getLogger("ray.serve")

MAX_ATTEMPTS: Final = 4
PLACEMENT_TIMEOUT_S: Final = 60.0
LAST_FRAME_TIMEOUT_S: Final = 5.0
CALL_TIMEOUT_S: Final = 5.0
"""Time for a call to end after its request has."""
REFUSED_PAUSE_S: Final = 0.05
DEMAND_PERIOD_S: Final = 1.0


class EngineFull(Overloaded):
    """An engine refused a request that the board saw room for; another may have some."""


class ServeTokenSource:
    """TokenSource over the Replica deployment. Lives on one event loop."""

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        board: Board,
        admission: Admission,
        frontend_id: str,
    ) -> None:
        self._handle = handle
        self._board = board
        self._admission = admission
        self._frontend_id = frontend_id
        self._clients: dict[str, TokenClient] = {}
        self._attempts: dict[str, Attempt] = {}
        """Open ones by their own ids."""
        self._present: dict[str, Attempt] = {}
        """Open ones by the ids of their requests."""
        self._demand = Demand()
        """What the engines were told last."""
        self._waking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the board's members from now on; call it on the event loop."""
        loop = asyncio.get_running_loop()

        def notify() -> None:
            loop.call_soon_threadsafe(self._follow_members)

        self._board.subscribe(notify)
        self._follow_members()
        loop.call_later(DEMAND_PERIOD_S, self._tell_demand)

    def snapshots(self) -> list[ReplicaSnapshot]:
        """Newest snapshot of every known replica."""
        return self._board.snapshots()

    def admission(self) -> AdmissionSnapshot:
        """What waits for a replica, and what has been placed."""
        return self._admission.snapshot()

    def decisions(self, request_id: str) -> list[Decision]:
        """Why a request went where it went."""
        return self._board.decisions(request_id)

    async def abort(self, request_id: str, choice_index: int) -> None:
        """End one choice early."""
        attempt = self._present.get(request_id)
        if attempt is not None:
            self._abort(attempt, attempt.replica_id, choice_index)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenOutput]:
        """Yield the outputs of all choices; see TokenSource."""
        arrived_s = asyncio.get_running_loop().time()
        for number in range(MAX_ATTEMPTS):
            # A lost replica may still speak for a while. Its outputs carry the old attempt's
            # id, which nobody listens to any more.
            attempt = Attempt(f"{request.request_id}.{number}")
            self._present[request.request_id] = attempt
            started = False
            try:
                async with aclosing(self._run(attempt, request, arrived_s)) as run:
                    async for output in run:
                        started = True
                        yield output
                return
            except (ReplicaLost, EngineFull) as error:
                if started or number == MAX_ATTEMPTS - 1:
                    raise
                logger.warning("placing %s again: %s", request.request_id, error.cause)
                if isinstance(error, EngineFull):
                    await asyncio.sleep(REFUSED_PAUSE_S)
            finally:
                self._present.pop(request.request_id, None)

    async def _run(
        self, attempt: Attempt, request: GenerateRequest, arrived_s: float
    ) -> AsyncGenerator[TokenOutput]:
        request = replace(request, request_id=attempt.id)
        num_unfinished = request.params.n
        num_output_tokens = 0
        self._attempts[attempt.id] = attempt
        call: asyncio.Task[None] | None = None
        try:
            if not self._board.members():
                self._wake()
            request = await self._admission.place(request, arrived_s)
            attempt.placed_on = self._board.placement(attempt.id)
            self._submit(attempt, request)
            # A task: it takes its time, and has to begin only after the stream has written.
            call = asyncio.create_task(self._call(attempt, request))
            while num_unfinished:
                event = await attempt.events.get()
                if isinstance(event, PageRayError):
                    raise event
                if event.token_ids and not num_output_tokens:
                    self._admission.note_first_token(arrived_s)
                num_output_tokens += len(event.token_ids)
                num_unfinished -= event.finish_reason is not None
                yield event
        finally:
            del self._attempts[attempt.id]
            if call is not None:
                self._end(attempt, call, is_early=num_unfinished > 0)
            self._admission.end(request, num_output_tokens)

    def _end(self, attempt: Attempt, call: "asyncio.Task[None]", *, is_early: bool) -> None:
        if is_early:
            self._abort(attempt, attempt.replica_id, None)
            call.cancel()
        else:
            # It ends by itself, unless Serve has not led it anywhere yet and the replica is gone.
            asyncio.get_running_loop().call_later(CALL_TIMEOUT_S, call.cancel)

    def _submit(self, attempt: Attempt, request: GenerateRequest) -> None:
        client = self._clients.get(attempt.placed_on or "")
        if client is not None:
            client.submit(request)

    async def _call(self, attempt: Attempt, request: GenerateRequest) -> None:
        response: Any = None
        limit = asyncio.get_running_loop().call_later(
            PLACEMENT_TIMEOUT_S, _refuse_unplaced, attempt
        )
        try:
            response = self._handle.generate.remote(self._frontend_id, request)
            refusal: WireError | None = await response
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()
            raise
        except Exception as error:  # noqa: BLE001  a dead replica has many names in Ray and gRPC
            self._end_call(attempt, _lost(str(error).strip().splitlines()[-1:]))
            return
        finally:
            limit.cancel()
        if refusal is not None:
            reason = refusal.to_error()
            if isinstance(reason, ReplicaLost):
                reason = _lost([reason.cause])
            elif isinstance(reason, Overloaded):
                reason = EngineFull(*reason.args)
            self._end_call(attempt, reason)
            return
        if attempt.id not in self._attempts:
            return
        # The engine has ended the request; its last frame may be a moment behind.
        await asyncio.sleep(LAST_FRAME_TIMEOUT_S)
        self._end_call(attempt, _lost(["its last tokens never arrived"]))

    def _end_call(self, attempt: Attempt, error: PageRayError) -> None:
        """The call is over, and the attempt with it, unless they have parted: Serve may have led
        the call elsewhere after the attempt had begun where it was placed."""
        led_to = self._board.placement(attempt.id)
        if attempt.accepted_by is None or led_to in (None, attempt.accepted_by):
            attempt.fail(error)

    def _abort(self, attempt: Attempt, replica_id: str | None, choice_index: int | None) -> None:
        client = self._clients.get(replica_id or "")
        if client is not None:
            client.abort(attempt.id, choice_index)

    def _follow_members(self) -> None:
        members = self._board.members()
        for replica_id, member in members.items():
            if replica_id not in self._clients:
                client = TokenClient(
                    replica_id,
                    member["address"],
                    token=member["token"],
                    peer_id=self._frontend_id,
                    on_frame=self._on_frame,
                    on_lost=self._on_lost,
                )
                self._clients[replica_id] = client
                client.start()
        for replica_id in self._clients.keys() - members.keys():
            self._close_idle(replica_id)
        if not members and self._admission.snapshot().num_held_requests:
            self._wake()

    def _wake(self) -> None:
        """Bring a deployment back that has no replica: calls that wait in Serve do."""
        if self._waking is None:
            self._waking = asyncio.create_task(self._wait_for_replica())

    async def _wait_for_replica(self) -> None:
        try:
            await self._handle.describe.remote()
        except Exception as error:  # noqa: BLE001  what waits is refused when its time is up
            logger.warning("no replica came up: %s", error)
        finally:
            self._waking = None

    def _tell_demand(self) -> None:
        asyncio.get_running_loop().call_later(DEMAND_PERIOD_S, self._tell_demand)
        demand = self._admission.demand()
        # What is held is told again: an engine that has just started has not heard it.
        if demand != self._demand or demand.num_held_requests:
            self._demand = demand
            for client in self._clients.values():
                client.tell(demand)

    def _on_frame(self, replica_id: str, frame: Frame) -> None:
        self._board.update(replica_id, frame.snapshot, frame.accepted, frame.changes)
        for attempt_id in frame.accepted:
            attempt = self._attempts.get(attempt_id)
            if attempt is not None:
                self._abort(attempt, attempt.accept(replica_id), None)
        # First tokens go out before anything is done for the others: nobody else has waited for as
        # long. Later turns of the loop come in order, so every choice keeps its own.
        self._take(replica_id, [output for output in frame.outputs if output.index == 0])
        later = [output for output in frame.outputs if output.index > 0]
        asyncio.get_running_loop().call_soon(self._take, replica_id, later)
        self._admission.wake()

    def _take(self, replica_id: str, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            attempt = self._attempts.get(output.request_id)
            if attempt is not None:
                attempt.take(replica_id, output)

    def _on_lost(self, replica_id: str, reason: str) -> None:
        self._board.mark_lost(replica_id)
        for attempt in self._attempts.values():
            if attempt.accepted_by == replica_id:  # soon: after the tokens that came before
                asyncio.get_running_loop().call_soon(attempt.fail, _lost([reason]))
        if replica_id not in self._board.members():
            self._close_idle(replica_id)

    def _close_idle(self, replica_id: str) -> None:
        # A draining replica has left the members but still finishes what it has, and what is on
        # its way to it: its client goes when the stream does.
        if not any(attempt.uses(replica_id) for attempt in self._attempts.values()):
            client = self._clients.pop(replica_id, None)
            if client is not None:
                client.close()


def _refuse_unplaced(attempt: Attempt) -> None:
    if attempt.accepted_by is None:
        attempt.fail(
            Overloaded(
                f"no replica took the request within {PLACEMENT_TIMEOUT_S:g} s.",
                "Try again later, or serve with more replicas.",
                10.0,
            )
        )


def _lost(reason: list[str]) -> ReplicaLost:
    return ReplicaLost(
        f"the replica that worked on the request is gone: {' '.join(reason)}",
        "Send the request again.",
    )
