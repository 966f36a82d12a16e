"""Runs requests on the cluster: control through a Serve handle, tokens from the engines.

A request waits until a replica has room for it. Then it goes to that replica's engine on the stream
that the tokens come on, a frame per step; and beside it in one unary call through the request
router, which stays open until the request ends and brings the request where the stream did not. A
request whose replica is lost goes on at another one, unseen by its client: see cluster/journal.py.
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
from cluster.journal import Journal, Poisonous
from cluster.messages import Demand, Frame
from cluster.quarantine import Quarantine
from cluster.request_times import RequestTimes
from cluster.retry_budget import RetryBudget
from cluster.snapshot import AdmissionSnapshot, ReplicaSnapshot
from cluster.token_clients import TokenClients
from deployments.attempt import Attempt
from deployments.replica_call import EngineFull, hold_call, lost
from deployments.trial import Trials
from engine.errors import Overloaded, PageRayError, ReplicaLost
from engine.output import TokenOutput
from engine.request import GenerateRequest

logger = logging.getLogger("ray.serve")

PLACEMENT_TIMEOUT_S: Final = 60.0
LAST_FRAME_TIMEOUT_S: Final = 5.0
CALL_TIMEOUT_S: Final = 5.0
"""Time for a call to end after its request has."""
REFUSED_PAUSE_S: Final = 0.05
MAX_REFUSED_PAUSE_S: Final = 1.0
DEMAND_PERIOD_S: Final = 1.0


class ServeTokenSource:
    """TokenSource over the Replica deployment. Lives on one event loop."""

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        board: Board,
        admission: Admission,
        frontend_id: str,
    ) -> None:
        clock = asyncio.get_running_loop().time
        self._handle = handle
        self._board = board
        self._admission = admission
        self._frontend_id = frontend_id
        self._clients = TokenClients(
            board,
            frontend_id,
            on_frame=self._on_frame,
            on_lost=self._on_lost,
            is_used=lambda replica_id: any(
                attempt.uses(replica_id) for attempt in self._attempts.values()
            ),
        )
        self._quarantine = Quarantine(clock)
        self._retries = RetryBudget(clock)
        self._trials = Trials()
        self._attempts: dict[str, Attempt] = {}
        """Open ones by their own ids."""
        self._present: dict[str, tuple[Journal, Attempt]] = {}
        """Open requests by their ids."""
        self._num_resumed = self._num_moved = self._num_quarantined = 0
        self._demand = Demand()
        """What the engines were told last."""
        self._waking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the board's members from now on; call it on the event loop."""
        self._clients.start(on_change=self._wake_if_alone)
        asyncio.get_running_loop().call_later(DEMAND_PERIOD_S, self._tell_demand)

    def snapshots(self) -> list[ReplicaSnapshot]:
        """Newest snapshot of every known replica."""
        return self._board.snapshots()

    def admission(self) -> AdmissionSnapshot:
        """What waits for a replica, and what has been placed."""
        return replace(
            self._admission.snapshot(),
            num_moved=self._num_moved,
            num_resumed=self._num_resumed,
            num_quarantined=self._num_quarantined,
        )

    def decisions(self, request_id: str) -> list[Decision]:
        """Why a request went where it went."""
        return self._board.decisions(request_id)

    async def abort(self, request_id: str, choice_index: int) -> None:
        """End one choice early."""
        if request_id in self._present:
            journal, attempt = self._present[request_id]
            journal.abort(choice_index)
            self._clients.abort(attempt.replica_id, attempt.id, choice_index)

    async def generate(
        self, request: GenerateRequest, times: RequestTimes
    ) -> AsyncGenerator[TokenOutput]:
        """Yield the outputs of all choices; see TokenSource."""
        arrived_s = asyncio.get_running_loop().time()
        self._quarantine.check(request)
        self._retries.note_request()
        journal = Journal(request)
        pause_s = REFUSED_PAUSE_S
        try:
            while journal.is_open:
                next_request = journal.next_attempt()
                attempt = Attempt(next_request.request_id, journal.num_attempts - 1)
                times.attempts.append(attempt.times)
                self._present[request.request_id] = journal, attempt
                trial = await self._trials.begin(attempt, is_suspect=journal.is_suspect)
                try:
                    async with aclosing(self._run(attempt, next_request, arrived_s)) as run:
                        async for output in run:
                            # A lost replica may still speak for a while. Its outputs carry the old
                            # attempt's id, which nobody listens to any more.
                            if (news := journal.take(output)) is not None:
                                yield news
                            if not journal.is_open:
                                return
                            if not journal.is_suspect:
                                trial.end()
                    raise lost("it ended the request before its last token")
                except ReplicaLost as error:
                    attempt.times.loss = error.cause
                    logger.warning("%s: %s", attempt.id, error.cause)
                    self._lose(request, journal, error, attempt)
                except EngineFull as error:
                    attempt.times.loss = error.cause
                    journal.refuse(error)
                    trial.end()
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, MAX_REFUSED_PAUSE_S)
                finally:
                    trial.end()
                for output in journal.end_unwanted():
                    yield output
        finally:
            self._present.pop(request.request_id, None)

    def _lose(
        self, request: GenerateRequest, journal: Journal, error: ReplicaLost, attempt: Attempt
    ) -> None:
        """Note that a replica is lost; raise where no other one goes on."""
        if attempt.replica_id is not None:
            # Its stream may not have told yet. If it lives, its next frame says so.
            self._board.avoid(attempt.replica_id)
            asyncio.get_running_loop().call_soon(self._clients.close_unused)
        try:
            journal.lose(error, was_accepted=attempt.accepted_by is not None)
        except Poisonous:
            self._num_quarantined += 1
            self._quarantine.add(request)
            raise
        if journal.has_begun:
            self._num_resumed += 1
        else:
            # One fault moves everything once. Who is moved again and again is a burden to the rest.
            if journal.num_lost > 1 and not self._retries.take():
                raise Overloaded(
                    "replicas are lost faster than requests can be moved.", "Try again later.", 10.0
                ) from error
            self._num_moved += 1

    async def _run(
        self, attempt: Attempt, request: GenerateRequest, arrived_s: float
    ) -> AsyncGenerator[TokenOutput]:
        """Yield what one attempt brings, for as long as it is asked."""
        num_output_tokens = 0
        has_first_token = request.num_emitted_tokens > 0
        num_live = request.num_live_choices
        self._attempts[attempt.id] = attempt
        call: asyncio.Task[None] | None = None
        try:
            if not self._board.members():
                self._wake()
            request = await self._admission.place(request, arrived_s, was_placed=attempt.number > 0)
            attempt.place(self._board.placement(attempt.id))
            self._clients.submit(attempt.placed_on, request)
            # A task: it takes its time, and has to begin only after the stream has written.
            call = asyncio.create_task(self._call(attempt, request))
            while num_live:
                event = await attempt.events.get()
                if isinstance(event, PageRayError):
                    raise event
                if event.token_ids and not has_first_token:
                    has_first_token = True
                    self._admission.note_first_token(arrived_s)
                num_output_tokens += len(event.token_ids)
                num_live -= event.finish_reason is not None
                yield event
        finally:
            del self._attempts[attempt.id]
            attempt.times.end()
            if call is not None:
                self._end(attempt, call, is_early=num_live > 0)
            self._admission.end(request, num_output_tokens)

    def _end(self, attempt: Attempt, call: "asyncio.Task[None]", *, is_early: bool) -> None:
        if is_early:
            self._clients.abort(attempt.replica_id, attempt.id, None)
            call.cancel()
        else:
            # It ends by itself, unless Serve has not led it anywhere yet and the replica is gone.
            asyncio.get_running_loop().call_later(CALL_TIMEOUT_S, call.cancel)

    async def _call(self, attempt: Attempt, request: GenerateRequest) -> None:
        limit = asyncio.get_running_loop().call_later(
            PLACEMENT_TIMEOUT_S, attempt.give_up_unplaced, PLACEMENT_TIMEOUT_S
        )
        try:
            error = await hold_call(self._handle, self._frontend_id, request)
        finally:
            limit.cancel()
        if error is None and attempt.id in self._attempts:
            # The engine has ended the request; its last frame may be a moment behind.
            await asyncio.sleep(LAST_FRAME_TIMEOUT_S)
            error = lost("its last tokens never arrived")
        # The call is over, and the attempt with it, unless they have parted: Serve may have led
        # the call elsewhere after the attempt had begun where it was placed.
        led_to = self._board.placement(attempt.id)
        if error is not None and (
            attempt.accepted_by is None or led_to in (None, attempt.accepted_by)
        ):
            attempt.fail(error)

    def _wake_if_alone(self) -> None:
        if not self._board.members() and self._admission.snapshot().num_held_requests:
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
            self._clients.tell(demand)

    def _on_frame(self, replica_id: str, frame: Frame) -> None:
        self._board.update(replica_id, frame.snapshot, frame.accepted, frame.changes)
        for attempt_id in frame.accepted:
            attempt = self._attempts.get(attempt_id)
            if attempt is not None:
                self._clients.abort(attempt.accept(replica_id), attempt.id, None)
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
        victims = [
            attempt for attempt in self._attempts.values() if self._is_at(attempt, replica_id)
        ]
        self._board.mark_lost(replica_id)
        for attempt in victims:  # soon: after the tokens that came before
            asyncio.get_running_loop().call_soon(attempt.fail, lost(reason))
        self._clients.close_unused()
        self._admission.wake()

    def _is_at(self, attempt: Attempt, replica_id: str) -> bool:
        """Whether an attempt is there, or on its way."""
        if attempt.accepted_by is not None:
            return attempt.accepted_by == replica_id
        return replica_id in (attempt.placed_on, self._board.placement(attempt.id))
