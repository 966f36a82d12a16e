"""One HTTP exchange over a plain socket, for a client that tells a cut from an end.

A general client forgives what a chaos run is there to find.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MAX_LINE_BYTES = 2**16
READ_BYTES = 2**16


class Cut(Exception):
    """The connection ended before the answer did."""


@dataclass(frozen=True, slots=True)
class Response:
    """The head of an answer, and its body as it comes."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]
    """Pieces as the server sent them. Raises Cut when the connection ends too early."""

    async def read(self) -> bytes:
        """The whole body. Raises Cut."""
        return b"".join([piece async for piece in self.body])


@asynccontextmanager
async def exchange(
    url: str, path: str, body: Mapping[str, Any] | None = None
) -> AsyncIterator[Response]:
    """POST a JSON object, or GET without one. Raises Cut; OSError where nobody listens."""
    address = urlsplit(url)
    payload = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        "Connection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(
        address.hostname, address.port, limit=MAX_LINE_BYTES
    )
    try:
        writer.write(head.encode() + payload)
        status = await _line(reader)
        if not status.startswith(b"HTTP/1.1 "):
            raise Cut(f"no answer, but {status!r}")
        headers: dict[str, str] = {}
        while line := (await _line(reader)).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        pieces = _chunks(reader) if "transfer-encoding" in headers else _counted(reader, headers)
        yield Response(int(status.split()[1]), headers, pieces)
    except ConnectionError as error:
        raise Cut(f"the connection broke: {error}") from error
    finally:
        writer.close()


async def get_json(url: str, path: str) -> Any:
    """What a path answers. Raises Cut, OSError, and LookupError for anything but a 200."""
    async with exchange(url, path) as response:
        text = await response.read()
        if response.status != 200:
            raise LookupError(f"{path} says {response.status}: {text[:300]!r}")
        return json.loads(text)


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise Cut("the connection ended inside a line of the answer's frame")
    return line


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await _line(reader)).split(b";")[0], 16):
        yield await _exactly(reader, size)
        await _line(reader)
    await _line(reader)


async def _counted(
    reader: asyncio.StreamReader, headers: Mapping[str, str]
) -> AsyncIterator[bytes]:
    if "content-length" in headers:
        yield await _exactly(reader, int(headers["content-length"]))
        return
    while piece := await reader.read(READ_BYTES):
        yield piece


async def _exactly(reader: asyncio.StreamReader, size: int) -> bytes:
    try:
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        raise Cut("the connection ended inside the answer's body") from error
