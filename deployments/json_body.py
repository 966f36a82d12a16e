"""Reads the body of a request as a JSON object, within bounds of size and time."""

import asyncio
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from deployments.http_errors import BodyTimeout, BodyTooLarge
from deployments.http_settings import HttpSettings
from engine.errors import InvalidRequest


async def read_json_object(
    scope: Scope, receive: Receive, settings: HttpSettings
) -> dict[str, Any]:
    """Read the whole body. Raises BodyTooLarge, BodyTimeout, InvalidRequest, ClientDisconnect."""
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdecimal() and len(declared) > len(str(settings.max_body_bytes)):
        raise _too_large(settings.max_body_bytes)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            body = await _read(receive, settings.max_body_bytes)
    except TimeoutError:
        raise BodyTimeout(
            f"The request body did not arrive within {settings.body_timeout_s:g} s.",
            "Send it faster, or in one piece.",
        ) from None
    return parse_json_object(body)


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Parse strict JSON: no NaN, no lone surrogates, no nesting without end."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"The request body is not valid JSON: {error}.", "Send a JSON object in UTF-8."
        ) from None
    except RecursionError:
        raise InvalidRequest(
            "The request body is nested too deeply.", "Send a flatter JSON object."
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"The request body is a JSON {_JSON_NAMES.get(type(value), 'number')}.",
            "Send a JSON object.",
        )
    return value


_JSON_NAMES = {list: "array", str: "string", bool: "boolean", type(None): "null"}


async def _read(receive: Receive, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The request body has more than {max_bytes} bytes.",
        "Send less, or split it into several requests.",
    )
