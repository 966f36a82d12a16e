"""What crosses the token stream, as msgpack.

A stream has a client, a frontend or the supervisor of a replica, and the engine's token server
at its other end. Everything is decoded into exactly these types, or refused.
"""

from enum import StrEnum
from typing import Final

import msgspec

from engine.cache_log import CacheChanges
from engine.errors import (
    DeadlinePassed,
    InvalidConfig,
    InvalidModel,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PageRayError,
    PromptTooLong,
    ReplicaLost,
    UnsupportedParameter,
)
from engine.output import TokenOutput
from engine.request import GenerateRequest
from engine.snapshot import EngineSnapshot

MAX_MESSAGE_BYTES: Final = 64 * 2**20
"""Room for a prompt of ten million tokens."""


class InvalidMessage(PageRayError):
    """A peer sent what the protocol does not allow; its connection is closed."""


class Role(StrEnum):
    """What a client of the token server is there for."""

    FRONTEND = "frontend"
    """Submits requests of its own and receives tokens."""
    REPLICA = "replica"
    """Submits requests of all frontends and learns when they have ended."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Anything on the stream."""


class Hello(Message, frozen=True, tag="hello"):
    """First message of every client."""

    token: str
    peer_id: str
    """Names the client's process; a new process takes a new one."""
    role: Role
    epoch: str | None = None
    """Engine that a frontend wants to go on with after a break; None: start afresh."""
    last_frame: int = 0
    """Number of the last frame received from that engine."""


class Submit(Message, frozen=True, tag="submit"):
    """A request for the engine, whose tokens go to the named frontend. Both that frontend and the
    supervisor of the replica send it; it runs once."""

    frontend_id: str
    request: GenerateRequest


class Abort(Message, frozen=True, tag="abort"):
    """End a request early, or one choice of it. A request that has ended is left alone."""

    request_id: str
    choice_index: int | None = None


class Ack(Message, frozen=True, tag="ack"):
    """A frontend has every frame up to this number."""

    number: int


class Demand(Message, frozen=True, tag="demand"):
    """What a frontend holds back because no replica has room, for the autoscaler."""

    num_held_requests: int = 0
    num_held_tokens: int = 0
    """Of their prompts."""
    ttft_attainment: float = 1.0
    """Share of its requests of the last minute whose first token came in time."""


class Welcome(Message, frozen=True, tag="welcome"):
    """Answer to Hello."""

    epoch: str
    resumed: bool
    """Whether the frontend's earlier state is still there; every missed frame follows."""


class Frame(Message, frozen=True, tag="frame"):
    """What a step brought for one frontend, and the state of the engine after it."""

    number: int
    """Counts the frames with outputs or acceptances; a heartbeat repeats the last number."""
    outputs: list[TokenOutput]
    snapshot: EngineSnapshot
    accepted: list[str]
    """Requests that the engine took in since the last frame; the snapshot covers them."""
    changes: CacheChanges = msgspec.field(default_factory=CacheChanges)
    """Blocks that its prefix cache has gained and lost since the last frame, by the first bytes of
    their hashes (cluster/prefix_index.py); the first frame brings all that it has."""


class WireError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An error of engine.errors as data."""

    kind: str
    cause: str
    fix: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def from_error(cls, error: BaseException) -> "WireError":
        """Take the error apart. The text of an unforeseen one stays here: it may tell secrets."""
        if not isinstance(error, PageRayError):
            cause = f"the engine failed on this request ({type(error).__name__})."
            return cls(PageRayError.__name__, cause, "See the log of the replica's rank 0.")
        known = next(kind for kind in type(error).__mro__ if kind.__name__ in _ERROR_KINDS)
        return cls(
            known.__name__,
            error.cause,
            error.fix,
            param=getattr(error, "param", None),
            code=getattr(error, "code", None),
            retry_after_s=getattr(error, "retry_after_s", None),
        )

    def to_error(self) -> PageRayError:
        """Put the error together again; an unknown kind becomes a plain PageRayError."""
        kind = _ERROR_KINDS.get(self.kind, PageRayError)
        if issubclass(kind, InvalidRequest):
            return kind(self.cause, self.fix, self.param, self.code)
        if kind is Overloaded and self.retry_after_s is not None:
            return Overloaded(self.cause, self.fix, self.retry_after_s)
        return kind(self.cause, self.fix)


_ERROR_KINDS: Final[dict[str, type[PageRayError]]] = {
    kind.__name__: kind
    for kind in (
        PageRayError,
        InvalidRequest,
        PromptTooLong,
        UnsupportedParameter,
        ModelNotFound,
        InvalidModel,
        InvalidConfig,
        DeadlinePassed,
        Overloaded,
        ReplicaLost,
    )
}


class Refused(Message, frozen=True, tag="refused"):
    """The engine did not take the request."""

    request_id: str
    error: WireError


class Ended(Message, frozen=True, tag="ended"):
    """All choices of these requests have ended, and their last frames are on their way."""

    request_ids: list[str]


ClientMessage = Hello | Submit | Abort | Ack | Demand
ServerMessage = Welcome | Frame | Refused | Ended

_ENCODER: Final = msgspec.msgpack.Encoder()
_CLIENT_DECODER: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_SERVER_DECODER: msgspec.msgpack.Decoder[ServerMessage] = msgspec.msgpack.Decoder(ServerMessage)


def encode(message: Message) -> bytes:
    """Message to bytes."""
    return _ENCODER.encode(message)


def decode_client_message(payload: bytes) -> ClientMessage:
    """Bytes from a client to its message. Raises InvalidMessage."""
    try:
        return _CLIENT_DECODER.decode(payload)
    except _DECODING_ERRORS as error:
        raise _invalid(error) from error


def decode_server_message(payload: bytes) -> ServerMessage:
    """Bytes from a token server to its message. Raises InvalidMessage."""
    try:
        return _SERVER_DECODER.decode(payload)
    except _DECODING_ERRORS as error:
        raise _invalid(error) from error


# PageRayError comes from the checks that SamplingParams makes of itself, RecursionError from
# nested nonsense, UnicodeDecodeError from broken text.
_DECODING_ERRORS: Final = (
    msgspec.MsgspecError,
    PageRayError,
    RecursionError,
    UnicodeDecodeError,
)


def _invalid(error: Exception) -> InvalidMessage:
    reason = error.cause if isinstance(error, PageRayError) else str(error)
    return InvalidMessage(
        f"a message on the token stream is not valid: {reason}",
        "Run the same version of PageRay on every node.",
    )
