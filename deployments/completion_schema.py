"""The body of POST /v1/completions, and the forms a prompt may take there."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema

from deployments.openai_schema import GenerationFields, Int64
from engine.errors import InvalidRequest
from engine.sampling_params import MAX_LOGPROBS, SamplingParams

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint only."""
MAX_TOKEN_ID = 2**31 - 1
_TOKEN_LIST: Final = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
    "minItems": 1,
}
_PROMPT_SCHEMA: Final = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _TOKEN_LIST,
        {"type": "array", "items": _TOKEN_LIST, "minItems": 1},
    ],
    "examples": ["Once upon a time"],
}


class CompletionFields(GenerationFields):
    """Fields of a text completion. `prompt` is checked by `read_prompts`."""

    prompt: Annotated[Any, WithJsonSchema(_PROMPT_SCHEMA)]
    max_tokens: Int64 = DEFAULT_MAX_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    add_special_tokens: bool = True

    def to_sampling_params(self) -> SamplingParams:
        """In the engine's words. Raises InvalidRequest."""
        return self.sampling_params(self.max_tokens, self.logprobs)


def read_prompts(prompt: Any, max_prompts: int) -> list[str | list[int]]:
    """Texts or token id lists; one of either counts as a list of one. Raises InvalidRequest."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise _invalid("is empty or of the wrong type")
    if _is_token_list(prompt):
        return [prompt]
    if len(prompt) > max_prompts:
        raise InvalidRequest(
            f"'prompt' has {len(prompt)} prompts.", f"Send at most {max_prompts}.", param="prompt"
        )
    if all(isinstance(item, str) for item in prompt):
        return prompt
    for item in prompt:
        if not (isinstance(item, list) and _is_token_list(item)):
            raise _invalid("mixes types")
    return prompt


def _is_token_list(value: Sequence[Any]) -> bool:
    # One look at the first item tells what the list is meant to be; `type`, for True is an int.
    if not value or type(value[0]) is not int:
        return False
    if not all(type(item) is int for item in value):
        raise _invalid("mixes types")
    if min(value) < 0 or max(value) > MAX_TOKEN_ID:
        raise InvalidRequest(
            "'prompt' has a token id that no model knows.",
            f"Send token ids from 0 to {MAX_TOKEN_ID}.",
            param="prompt",
        )
    return True


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"'prompt' {what}.",
        "Send a string, a list of strings, a list of token ids or a list of such lists.",
        param="prompt",
    )
