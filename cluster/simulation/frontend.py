"""A frontend of the simulated cluster: places requests by its own board, follows their tokens."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cluster.board import Board
from cluster.placement import RequestNeed
from cluster.prefix_index import prompt_keys
from cluster.simulation.events import Events
from cluster.simulation.replica import MODEL_NAME, SimulatedReplica, StepResult
from cluster.simulation.trace import TraceRequest
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams

_RETRY_S = 0.05
"""After so long a request that found no replica is placed again, as by Serve's router."""
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
        on_end: Callable[[Outcome], None],
    ) -> None:
        self._name = name
        self._events = events
        self._board = board
        self._replicas = replicas
        self._network_s = network_s
        self._block_size = next(iter(replicas.values())).snapshot().block_size
        self._on_end = on_end
        self._live: dict[str, Outcome] = {}
        self._held: deque[Outcome] = deque()
        self._is_retrying = False

    def take(self, request: TraceRequest) -> None:
        """Serve a request that a client has just sent."""
        self._place(Outcome(request))

    def hear_reports(self, results: Sequence[StepResult]) -> None:
        """Take what a replica has told of itself since its last report."""
        for result in results:
            accepted, changes = result.admissions.accepted, result.output.changes
            self._board.update(result.replica_id, result.snapshot, accepted, changes)

    def hear_tokens(self, result: StepResult) -> None:
        """Take what a step brought."""
        for request_id in result.admissions.refused:
            if (refused := self._leave(request_id)) is not None:
                self._hold(refused)
        for request_id in result.admissions.invalid:
            if (invalid := self._leave(request_id)) is not None:
                self._on_end(invalid)
        for output in result.output.outputs:
            outcome = self._live.get(output.request_id)
            if outcome is None:
                continue
            if outcome.first_s is None:
                outcome.first_s = self._events.now
                outcome.num_cached_tokens = output.num_cached_tokens
            if output.finish_reason is not None:
                self._leave(output.request_id)
                outcome.last_s = self._events.now
                self._on_end(outcome)

    def lose(self, replica_id: str) -> None:
        """Place again what ran on a replica that is gone."""
        self._board.mark_lost(replica_id)
        lost = [key for key, outcome in self._live.items() if outcome.replica_id == replica_id]
        for request_id in lost:
            outcome = self._leave(request_id)
            assert outcome is not None
            self._place(outcome)

    def _place(self, outcome: Outcome) -> None:
        if not self._replicas:
            self._on_end(outcome)
            return
        request = outcome.request
        asked = GenerateRequest(
            request_id=f"{self._name}-{request.number}.{outcome.num_placements}",
            prompt_token_ids=request.prompt(),
            params=SamplingParams(
                max_tokens=request.num_output_tokens, ignore_eos=True, seed=_SEED
            ),
            cache_salt=request.tenant,
        )
        keys = prompt_keys(asked, MODEL_NAME, self._block_size)
        chosen = self._board.choose(RequestNeed.of(asked, keys))
        if chosen is None:
            self._hold(outcome)
            return
        outcome.replica_id = chosen
        outcome.num_placements += 1
        self._live[asked.request_id] = outcome
        self._events.after(self._network_s, partial(self._send, chosen, asked))

    def _send(self, replica_id: str, request: GenerateRequest) -> None:
        replica = self._replicas.get(replica_id)
        # If it has died meanwhile, `lose` has placed the request again.
        if replica is not None:
            replica.submit(request)

    def _leave(self, request_id: str) -> Outcome | None:
        self._board.release(request_id)
        return self._live.pop(request_id, None)

    def _hold(self, outcome: Outcome) -> None:
        self._held.append(outcome)
        if not self._is_retrying:
            self._is_retrying = True
            self._events.after(_RETRY_S, self._retry)

    def _retry(self) -> None:
        self._is_retrying = False
        held, self._held = self._held, deque()
        for outcome in held:
            self._place(outcome)
