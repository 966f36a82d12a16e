"""Reads a batch: OpenAI's JSON lines, a request each, checked one line at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import InvalidConfig

ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions")
EXAMPLE: Final = (
    '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": ...}}'
)


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One line."""

    custom_id: str
    url: str
    """One of ENDPOINTS."""
    body: dict[str, Any]
    place: str
    """FILE:LINE."""


def read_batch(path: Path) -> Iterator[BatchRequest]:
    """Yield the requests in order, with no more than one of them in memory.

    Raises InvalidConfig, which names file and line, where a line cannot be asked.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _request(line, f"{path}:{number}")
    except OSError as error:
        raise InvalidConfig(
            f"{path} cannot be read: {error.strerror}.", "Give a file with a request on each line."
        ) from error


def read_custom_ids(path: Path) -> set[str]:
    """Check every line; return their ids, which must differ. Raises InvalidConfig."""
    places: dict[str, str] = {}
    for request in read_batch(path):
        first = places.setdefault(request.custom_id, request.place)
        if first != request.place:
            raise InvalidConfig(
                f'{request.place}: custom_id "{request.custom_id}" is that of {first}, too.',
                "Give each line an id of its own: answers are told apart by it.",
            )
    if not places:
        raise InvalidConfig(f"{path} has no request.", f"Write one on each line: {EXAMPLE}")
    return set(places)


def _request(line: bytes, place: str) -> BatchRequest:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfig(f"{place} is no JSON: {error}.", f"Write {EXAMPLE}") from error
    if not isinstance(value, dict):
        raise InvalidConfig(f"{place} is no JSON object.", f"Write {EXAMPLE}")
    custom_id, body = value.get("custom_id"), value.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise InvalidConfig(
            f"{place} has no custom_id.", 'Give it one, as text: "custom_id": "document-7".'
        )
    if value.get("method") != "POST":
        raise InvalidConfig(f"{place}: method is no POST.", 'Write "method": "POST".')
    if value.get("url") not in ENDPOINTS:
        raise InvalidConfig(
            f"{place}: url is none that a batch may ask.", f"Write one of {', '.join(ENDPOINTS)}."
        )
    if not isinstance(body, dict):
        raise InvalidConfig(f"{place}: body is no JSON object.", f"Write {EXAMPLE}")
    if body.get("stream"):
        raise InvalidConfig(
            f"{place}: body asks for a stream.", 'Leave "stream" out: a batch has whole answers.'
        )
    return BatchRequest(custom_id, value["url"], body, place)
