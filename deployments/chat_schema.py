"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from deployments.chat_messages import MESSAGES_SCHEMA
from deployments.openai_schema import Fields, GenerationFields, Int64, shorten
from engine.errors import InvalidRequest
from engine.sampling_params import MAX_LOGPROBS, SamplingParams

MAX_TEMPLATE_KWARGS = 64

_RESERVED_TEMPLATE_KWARGS = frozenset({"messages", "add_generation_prompt", "tools", "documents"})


def _check_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if not name.isidentifier() or name in _RESERVED_TEMPLATE_KWARGS:
            raise InvalidRequest(
                f"'chat_template_kwargs' has {shorten(name)}, which is no template variable.",
                "Use names of variables that the model's chat template reads.",
                param="chat_template_kwargs",
            )
    return kwargs


class ChatPromptFields(Fields):
    """Fields that make the prompt. `messages` are checked in chat_messages.py."""

    messages: Annotated[list[Any], WithJsonSchema(MESSAGES_SCHEMA)]
    add_generation_prompt: bool | None = None
    """None: yes, unless the final message is to be continued."""
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template_kwargs: Annotated[
        dict[str, Any], Field(max_length=MAX_TEMPLATE_KWARGS), AfterValidator(_check_kwargs)
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_continuation(self) -> Self:
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidRequest(
                "'add_generation_prompt' and 'continue_final_message' exclude each other.",
                "Set only one of them to true.",
                param="continue_final_message",
            )
        return self

    @property
    def wants_generation_prompt(self) -> bool:
        """Whether the template opens a new message for the answer."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt


class ChatFields(GenerationFields, ChatPromptFields):
    """Fields of a chat completion."""

    max_tokens: Annotated[Int64, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Int64, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest(
                "'top_logprobs' is set but 'logprobs' is not.",
                "Set logprobs to true, or leave top_logprobs out.",
                param="top_logprobs",
            )
        return self

    def to_sampling_params(self) -> SamplingParams:
        """In the engine's words. Raises InvalidRequest."""
        max_tokens = self.max_completion_tokens
        if max_tokens is None:
            max_tokens = self.max_tokens
        return self.sampling_params(max_tokens, (self.top_logprobs or 0) if self.logprobs else None)
