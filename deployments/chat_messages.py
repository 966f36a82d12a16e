"""Checks the messages of a chat and brings them into the form that chat templates read."""

from typing import Any, Final

from deployments.openai_schema import shorten
from engine.errors import InvalidRequest, PromptTooLong, UnsupportedParameter

_ROLES = {
    "system": "system",
    # OpenAI's newer name; templates know the older one.
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_TOOL_ROLES = ("tool", "function")
_PASSED_ON = ("name", "reasoning_content")
"""Optional texts that templates may read."""
TEXTS = frozenset({"content", *_PASSED_ON})
"""What is text of a client in a message that was read."""
_UNSUPPORTED = ("tool_calls", "tool_call_id", "function_call", "audio", "refusal")
_IGNORED = ("annotations",)
"""OpenAI's own notes on an answer; a client that sends the answer back sends them too."""

_TEXT: Final = {"type": "string"}
MESSAGES_SCHEMA: Final[dict[str, Any]] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": list(_ROLES)},
            "content": {
                "anyOf": [
                    _TEXT,
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"type": {"const": "text"}, "text": _TEXT},
                            "required": ["type", "text"],
                        },
                    },
                ]
            },
            **{name: {"type": ["string", "null"]} for name in _PASSED_ON},
            **{name: {"enum": [None, False, 0, "", [], {}]} for name in _UNSUPPORTED},
            **{name: {} for name in _IGNORED},
        },
        "required": ["role", "content"],
        "additionalProperties": False,
    },
}
"""The same as a JSON schema, for who reads about it."""


def read_messages(messages: list[Any], max_messages: int) -> list[dict[str, Any]]:
    """Return the messages with roles and texts only. Raises InvalidRequest naming the place."""
    if not messages:
        raise InvalidRequest("'messages' is empty.", "Send at least one message.", param="messages")
    if len(messages) > max_messages:
        raise PromptTooLong(
            f"'messages' has {len(messages)} messages, and each takes at least one token of "
            f"{max_messages}.",
            "Shorten the messages.",
        )
    num_parts_left = [max_messages]
    return [
        _read_message(message, f"messages[{i}]", num_parts_left)
        for i, message in enumerate(messages)
    ]


def _read_message(message: Any, place: str, num_parts_left: list[int]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidRequest(f"'{place}' is not an object.", "Send role and content.", param=place)
    result = {"role": _read_role(message, place)}
    for name, value in message.items():
        if name in ("role", "content") or name in _IGNORED:
            continue
        where = f"{place}.{name[:64]}"
        if name in _PASSED_ON:
            if value is not None:
                result[name] = _check_text(value, where)
        elif name in _UNSUPPORTED:
            if value:
                raise UnsupportedParameter(
                    f"'{where}' is not supported.", "Leave it out.", param=where
                )
        else:
            raise InvalidRequest(
                f"'{place}' has an unknown field {shorten(name)}.",
                "Leave it out.",
                param=where,
                code="unknown_parameter",
            )
    result["content"] = _read_content(message.get("content"), f"{place}.content", num_parts_left)
    return result


def _read_role(message: dict[str, Any], place: str) -> str:
    role = message.get("role")
    where = f"{place}.role"
    if role in _TOOL_ROLES:
        raise UnsupportedParameter(
            f"'{where}' is {role!r}: tools are not supported.",
            f"Use one of {', '.join(_ROLES)}.",
            param=where,
        )
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(
            f"'{where}' is missing or unknown.", f"Use one of {', '.join(_ROLES)}.", param=where
        )
    return _ROLES[role]


def _read_content(content: Any, where: str, num_parts_left: list[int]) -> str:
    if not isinstance(content, list):
        return _check_text(content, where)
    num_parts_left[0] -= len(content)
    if num_parts_left[0] < 0:
        raise PromptTooLong(
            "The messages have more parts than the context has tokens.", "Shorten the messages."
        )
    # As in vLLM: parts are lines.
    return "\n".join(_read_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _read_part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        shown = shorten(kind) if isinstance(kind, str) else "missing"
        raise UnsupportedParameter(
            f"'{where}.type' is {shown}; only text is supported.",
            'Send parts like {"type": "text", "text": "..."}.',
            param=f"{where}.type",
        )
    return _check_text(part.get("text"), f"{where}.text")


def _check_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"'{where}' is not a string.", "Send a string.", param=where)
    return value
