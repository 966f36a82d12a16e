"""Forms of the answers, as pydantic models: what the OpenAPI document says of them.

Answers are written without these, for speed; tests hold every answer against the document.
"""

from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from cluster.decision import Decision
from cluster.snapshot import AdmissionSnapshot, ReplicaSnapshot
from engine.output import FinishReason
from engine.snapshot import EngineSnapshot


class Answer(BaseModel):
    """Every field is there, and no other."""

    model_config = ConfigDict(extra="forbid")


class ErrorFields(Answer):
    """What is wrong and what helps."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """The body of every error."""

    error: ErrorFields


class PromptTokensDetails(Answer):
    """Where the tokens of a prompt came from."""

    cached_tokens: int


class Usage(Answer):
    """Tokens of a request, over all of its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(Answer):
    """A token, the natural logarithm of its probability, and its bytes."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """One drawn token beside those that were likeliest."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """Of each token of a message."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(Answer):
    """Of each token of a text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Message(Answer):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    """A whole message."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Delta(BaseModel):
    """A part of a message: the role first, then text, nothing at the end."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["assistant"] = "assistant"
    content: str = ""
    refusal: None = None


class ChatChunkChoice(Answer):
    """What a message gained."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class TextChoice(Answer):
    """A whole text."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextChunkChoice(Answer):
    """What a text gained."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class Envelope(Answer):
    """What every answer with generated text has."""

    id: str
    created: int
    model: str
    system_fingerprint: None


class ChatCompletion(Envelope):
    """An answer to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatCompletionChunk(Envelope):
    """An event of a streamed chat; `usage` is there where it was asked for."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class Completion(Envelope):
    """Texts that go on from prompts."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class CompletionChunk(Envelope):
    """An event of a streamed completion; `usage` is there where it was asked for."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: Usage | None = None


class Model(Answer):
    """A name that requests may use."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(Answer):
    """All names."""

    object: Literal["list"]
    data: list[Model]


class Tokens(Answer):
    """Token ids of a text; `token_strs` where they were asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] = []


class Text(Answer):
    """The text of token ids."""

    prompt: str


class Health(Answer):
    """Whether every replica makes progress; a sentence for each thing that is wrong."""

    status: Literal["healthy", "unhealthy"]
    problems: list[str]


class Readiness(Answer):
    """Whether every model takes requests."""

    ready: bool


class Version(Answer):
    """The version of PageRay."""

    version: str


def _replica_status() -> type[BaseModel]:
    hints = {**get_type_hints(ReplicaSnapshot), **get_type_hints(EngineSnapshot)}
    del hints["engine"]
    fields: dict[str, Any] = {name: (hint, ...) for name, hint in hints.items()}
    return create_model(
        "ReplicaStatus", __base__=Answer, __doc__="The newest snapshot of a replica.", **fields
    )


ReplicaStatus = _replica_status()


class ModelStatus(Answer):
    """What is known of one model."""

    model: str
    replicas: list[ReplicaStatus]  # type: ignore[valid-type]  # made of what snapshots have
    admission: AdmissionSnapshot


class Status(Answer):
    """The newest snapshots, by model."""

    models: list[ModelStatus]


class Why(Answer):
    """Why a request went to its replica, an entry for each attempt."""

    request_id: str
    decisions: list[Decision]
