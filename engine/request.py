"""A request as it enters the engine, and the state of each of its sequences inside."""

from dataclasses import dataclass, field, replace
from enum import Enum

from engine.output import FinishReason
from engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One prompt and what to make of it. Crosses processes as msgpack.

    The engine makes `params.n` sequences of it, all under the same `request_id`.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    cache_salt: str = ""
    """Requests share cached prefixes only within one salt."""
    priority: int = 0
    """Class of service: lower values go first, and may take blocks from higher ones."""
    deadline_s: float | None = None
    """Seconds from now after which nobody wants the answer: the request ends with an error."""
    tenant: str = ""
    weight: float = 1.0
    """Share of the service that its tenant gets while all ask for more than there is."""
    session_id: str = ""
    """Its client's name for a conversation; empty: none. Only placement looks at it."""
    emitted: list[list[int] | None] = field(default_factory=list)
    """Of each choice, the output that came from another engine, behind which it goes on; None: it
    has ended. Empty: a request that begins."""

    @property
    def num_live_choices(self) -> int:
        """Choices that have not ended."""
        return self.params.n - self.emitted.count(None)

    @property
    def num_emitted_tokens(self) -> int:
        """Output tokens that it brings along, of all choices."""
        return sum(len(token_ids) for token_ids in self.emitted if token_ids)

    def later(self, elapsed_s: float) -> "GenerateRequest":
        """Return the request so many seconds on, with what is left of its deadline."""
        if self.deadline_s is None:
            return self
        # Above 0, as it must be: the engine ends a request whose time is up at once, and says so.
        return replace(self, deadline_s=max(self.deadline_s - elapsed_s, 1e-3))


class RequestStatus(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


UNKNOWN_TOKEN = -1
"""Stands for a token that was drawn where the logits are, and that nobody has read yet."""


@dataclass(slots=True, eq=False)
class Request:
    """One sequence inside the engine: choice `choice_index` of a GenerateRequest.

    Owned by the scheduler. Identity is the object; (request_id, choice_index) names it outside.
    `token_ids` is prompt plus output; positions [0, num_computed_tokens) have their KV in
    `block_ids`, which the block pool handed out in order. A step counts as soon as it is on its
    way: what it computes as computed, what it draws as UNKNOWN_TOKEN.
    """

    request_id: str
    choice_index: int
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    """Never None: drawn at admission when the client sent none."""
    max_tokens: int
    """Never None: bounded by the context at admission."""
    stop_token_ids: frozenset[int]
    """Ids that end it (end-of-sequence ids included unless ignored)."""
    cache_salt: str = ""
    priority: int = 0
    deadline: float | None = None
    """On the engine's clock."""
    tenant: str = ""
    weight: float = 1.0
    num_prompt_tokens: int = field(init=False)
    num_resumed_tokens: int = field(init=False)
    """Output tokens that it came with: another engine has drawn them."""
    siblings: list["Request"] = field(default_factory=list)
    """All choices of the same GenerateRequest, this one included; empty where n is 1."""
    status: RequestStatus = RequestStatus.WAITING
    token_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """Hash chain over the full blocks of `token_ids` seen so far."""
    num_computed_tokens: int = 0
    num_unknown_tokens: int = 0
    """So many of the last of `token_ids` are UNKNOWN_TOKEN."""
    num_registered_blocks: int = 0
    """Its first blocks, which the prefix cache knows."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at first admission."""
    num_shared_blocks: int = 0
    """Of its first blocks, those that others held when it was admitted."""
    num_preemptions: int = 0
    num_overtakes: int = 0
    """Requests that were admitted before it although they stood behind it."""
    arrival: int = 0
    """Order of arrival, given by the scheduler: lower came first."""
    arrival_s: float = 0.0
    """Time of arrival on the engine's clock."""
    started_s: float = 0.0
    """When it was let in for the first time, on the same clock."""
    due_s: float = 0.0
    """When it should have its first token; see engine/waiting_queue.py."""
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        """Start from the prompt."""
        self.num_prompt_tokens = len(self.prompt_token_ids)
        if not self.token_ids:
            self.token_ids = list(self.prompt_token_ids)
        self.num_resumed_tokens = len(self.token_ids) - self.num_prompt_tokens

    @property
    def rank(self) -> tuple[int, int]:
        """Who may take blocks from whom: lower from higher."""
        return self.priority, self.arrival

    @property
    def place(self) -> tuple[int, float, int]:
        """Order in which requests are given prefill: lower first."""
        return self.priority, self.due_s, self.arrival

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens so far, those unknown included."""
        return len(self.token_ids)

    @property
    def num_missing_tokens(self) -> int:
        """Of them, those not computed yet."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_known_tokens(self) -> int:
        """The same without those unknown."""
        return len(self.token_ids) - self.num_unknown_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    def expect(self) -> None:
        """Note that a token was drawn."""
        self.token_ids.append(UNKNOWN_TOKEN)
        self.num_unknown_tokens += 1

    def learn(self, token_id: int) -> FinishReason | None:
        """Take the first token that was unknown; return why the sequence has ended, if it has."""
        place = self.num_known_tokens
        assert place < len(self.token_ids), "a token that nobody expects"
        self.token_ids[place] = token_id
        self.num_unknown_tokens -= 1
        if token_id in self.stop_token_ids:
            return FinishReason.STOP
        if place + 1 >= self.num_prompt_tokens + self.max_tokens:
            return FinishReason.LENGTH
        return None

    def forget_unknown(self) -> None:
        """Leave out the tokens that nobody will read."""
        del self.token_ids[self.num_known_tokens :]
        self.num_unknown_tokens = 0
