"""Fields of OpenAI's and vLLM's requests that are known here but do nothing yet.

Each is accepted at the values that ask for nothing, so that clients which always send them work.
Any other value is refused by name: a request never gets less than it asked for in silence.
Names and meanings: OpenAI's API reference and vLLM's online serving documentation.
"""

from collections.abc import Mapping
from typing import Any, Final


class _Anything:
    """Marks fields that are labels for the client's own use."""


NeutralFields = Mapping[str, tuple[Any, ...]]

ANYTHING: Final = _Anything()
"""Allows every value."""

_LABEL: Final = (ANYTHING,)
_OFF: Final = (False,)
_ON: Final = (True,)
_EMPTY_LIST: Final[tuple[Any, ...]] = ([],)
_EMPTY_OBJECT: Final[tuple[Any, ...]] = ({},)
_NEVER: Final[tuple[Any, ...]] = ()

_SHARED: Final[NeutralFields] = {
    # labels and OpenAI's housekeeping
    "user": _LABEL,
    "session_id": _LABEL,
    # what vLLM adds to sampling
    "use_beam_search": _OFF,
    "length_penalty": (1.0,),
    "spaces_between_special_tokens": _ON,
    "truncate_prompt_tokens": _NEVER,
    "truncation_side": _NEVER,
    "prompt_logprobs": _NEVER,
    "logprob_token_ids": _EMPTY_LIST,
    "allowed_token_ids": _EMPTY_LIST,
    "bad_words": _EMPTY_LIST,
    "watermarking": _OFF,
    "repetition_detection": _NEVER,
    "thinking_token_budget": (-1,),
    "logits_processors": _EMPTY_LIST,
    # constrained output
    "response_format": ({"type": "text"},),
    "structured_outputs": _EMPTY_OBJECT,
    "guided_json": _NEVER,
    "guided_regex": _NEVER,
    "guided_choice": _NEVER,
    "guided_grammar": _NEVER,
    "guided_decoding_backend": _NEVER,
    "guided_whitespace_pattern": _NEVER,
    # what vLLM adds beside it
    "request_id": _NEVER,
    "return_tokens_as_token_ids": _OFF,
    "return_token_ids": _OFF,
    "return_token_offsets": _OFF,
    "return_mm_kwargs": _ON,
    "routed_experts_prompt_start": (0,),
    "kv_transfer_params": _EMPTY_OBJECT,
    "ec_transfer_params": _EMPTY_OBJECT,
    "vllm_xargs": _EMPTY_OBJECT,
    "stream_interval": (1,),
    "best_of": (1,),
    "echo": _OFF,
}

CHAT_NEUTRAL_FIELDS: Final[NeutralFields] = {
    **_SHARED,
    "metadata": _LABEL,
    "safety_identifier": _LABEL,
    "prompt_cache_key": _LABEL,
    "prompt_cache_options": _EMPTY_OBJECT,
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "store": _OFF,
    "service_tier": ("auto", "default"),
    "moderation": _NEVER,
    "verbosity": ("medium",),
    "tools": _EMPTY_LIST,
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
    "functions": _EMPTY_LIST,
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": _NEVER,
    "prediction": _NEVER,
    "reasoning_effort": ("none",),
    "include_reasoning": _ON,
    "web_search_options": _NEVER,
    "documents": _EMPTY_LIST,
    # A template from a client could run for ever; only the model's own is used.
    "chat_template": _NEVER,
    "return_prompt_text": _OFF,
    "media_io_kwargs": _EMPTY_OBJECT,
    "mm_processor_kwargs": _EMPTY_OBJECT,
}

COMPLETION_NEUTRAL_FIELDS: Final[NeutralFields] = {
    **_SHARED,
    "suffix": ("",),
    "prompt_embeds": _NEVER,
}


def is_neutral(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a field's value asks for nothing. In JSON, 0 is not false and 1 is not true."""
    return value is None or any(
        each is ANYTHING or (value == each and isinstance(value, bool) == isinstance(each, bool))
        for each in allowed
    )
