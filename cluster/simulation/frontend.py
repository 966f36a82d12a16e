"""A frontend of the simulated cluster: places requests by its own board, follows their tokens."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cluster.admission_limits import AdmissionLimits
from cluster.admission_queue import LOOK_S, AdmissionQueue, Ticket
from cluster.attainment import Attainment
from cluster.board import Board
from cluster.messages import Demand
from cluster.prefix_index import prompt_keys
from cluster.request_need import RequestNeed
from cluster.simulation.events import Events
from cluster.simulation.replica import MODEL_NAME, SimulatedReplica, StepResult
from cluster.simulation.scaler import Scaling
from cluster.simulation.trace import TraceRequest
from engine.errors import Overloaded
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams

_SEED = 0


@dataclass(slots=True)
class Outcome:
    """What became of a request that has ended; times on the simulated clock."""

    request: TraceRequest
    first_s: float | None = None
    last_s: float | None = None
    replica_id: str = ""
    num_cached_tokens: int = 0
    num_placements: int = 0

    @property
    def has_failed(self) -> bool:
        """Whether nobody could serve it."""
        return self.last_s is None


class Frontend:
    """Holds the requests of its clients until they have ended."""

    def __init__(
        self,
        name: str,
        events: Events,
        board: Board,
        replicas: Mapping[str, SimulatedReplica],
        network_s: float,
        limits: AdmissionLimits,
        on_end: Callable[[Outcome], None],
        *,
        scaling: Scaling | None = None,
    ) -> None:
        self._name = name
        self._events = events
        self._board = board
        self._replicas = replicas
        self._network_s = network_s
        self._block_size = next(iter(replicas.values())).snapshot().block_size
        self._on_end = on_end
        self._waits_for_start = scaling is not None
        objective_s = math.inf if scaling is None else scaling.ttft_objective_s
        self._attainment = Attainment(objective_s, events.clock)
        self._live: dict[str, Outcome] = {}
        self._asked: dict[str, GenerateRequest] = {}
        """What waits, as it goes to the engine."""
        self._queue = AdmissionQueue(board, limits, events.clock, uniform=lambda a, b: (a + b) / 2)
        self._will_look = False

    def take(self, request: TraceRequest) -> None:
        """Serve a request that a client has just sent."""
        self._place(Outcome(request))

    def has_placed(self, request_id: str) -> bool:
        """Whether a request is one of ours that has not ended."""
        return request_id in self._live

    def hear_reports(self, results: Sequence[StepResult]) -> None:
        """Take what a replica has told of itself since its last report."""
        for result in results:
            accepted, changes = result.admissions.accepted, result.output.changes
            self._board.update(result.replica_id, result.snapshot, accepted, changes)
        self._look_soon()

    def hear_tokens(self, result: StepResult) -> None:
        """Take what a step brought."""
        for request_id in result.admissions.refused:
            if (refused := self._leave(request_id)) is not None:
                self._place(refused)
        for request_id in result.admissions.invalid:
            if (invalid := self._leave(request_id)) is not None:
                self._on_end(invalid)
        for output in result.output.outputs:
            outcome = self._live.get(output.request_id)
            if outcome is None:
                continue
            if outcome.first_s is None:
                outcome.first_s = self._events.now
                self._attainment.add(outcome.first_s - outcome.request.arrival_s)
                outcome.num_cached_tokens = output.num_cached_tokens
            if output.finish_reason is not None:
                self._leave(output.request_id, outcome.request.num_output_tokens)
                outcome.last_s = self._events.now
                self._on_end(outcome)

    def demand(self) -> Demand:
        """Return what the autoscaler has to know."""
        return Demand(len(self._queue), self._queue.num_tokens, self._attainment.share)

    def lose(self, replica_id: str) -> None:
        """Place again what ran on a replica that is gone, and fail all if it was the last."""
        self._board.mark_lost(replica_id)
        is_last = not self._replicas and not self._waits_for_start
        lost = [
            key
            for key, outcome in self._live.items()
            if outcome.replica_id == replica_id or is_last  # nobody is left for those who wait
        ]
        for request_id in lost:
            outcome = self._leave(request_id)
            assert outcome is not None
            self._place(outcome)

    def _place(self, outcome: Outcome) -> None:
        if not self._replicas and not self._waits_for_start:
            self._on_end(outcome)
            return
        request = outcome.request
        asked = GenerateRequest(
            request_id=f"{self._name}-{request.number}.{outcome.num_placements}",
            prompt_token_ids=request.prompt(),
            params=SamplingParams(
                max_tokens=request.num_output_tokens, ignore_eos=True, seed=_SEED
            ),
            cache_salt=request.cache_salt,
            tenant=request.tenant,
        )
        outcome.num_placements += 1
        keys = prompt_keys(asked, MODEL_NAME, self._block_size)
        ticket = Ticket(
            need=RequestNeed.of(asked, keys), tenant=request.tenant, arrived_s=request.arrival_s
        )
        try:
            replica_id = self._queue.enter(ticket)
        except Overloaded:
            self._attainment.add(math.inf)
            self._on_end(outcome)
            return
        self._live[asked.request_id] = outcome
        self._asked[asked.request_id] = asked
        if replica_id is not None:
            self._start(asked.request_id, replica_id)

    def _start(self, request_id: str, replica_id: str) -> None:
        self._live[request_id].replica_id = replica_id
        asked = self._asked.pop(request_id)
        self._events.after(self._network_s, partial(self._send, replica_id, asked))

    def _send(self, replica_id: str, request: GenerateRequest) -> None:
        replica = self._replicas.get(replica_id)
        # If it has died meanwhile, `lose` has placed the request again.
        if replica is not None:
            replica.submit(request)

    def _leave(self, request_id: str, num_output_tokens: int = 0) -> Outcome | None:
        self._queue.end(request_id, num_output_tokens)
        self._asked.pop(request_id, None)
        self._look_soon()
        return self._live.pop(request_id, None)

    def _look_soon(self) -> None:
        if len(self._queue) and not self._will_look:
            self._will_look = True
            self._events.after(LOOK_S, self._look)

    def _look(self) -> None:
        self._will_look = False
        for ticket, replica_id in self._queue.place_next():
            self._start(ticket.need.request_id, replica_id)
        for ticket in self._queue.give_up():
            self._attainment.add(math.inf)
            self._asked.pop(ticket.need.request_id)
            self._on_end(self._live.pop(ticket.need.request_id))
