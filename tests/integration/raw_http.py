"""HTTP/1.1 over raw connections: whatever bytes go out, and what comes back in full."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

HOST = "127.0.0.1"
ANSWER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection takes another request."""
        return self.headers.get("connection", "").lower() != "close"


class Connection:
    """One connection; a new one is opened where the last has ended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, data: bytes) -> None:
        """Send bytes as they are. Raises OSError."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(HOST, self._port)
        self._writer.write(data)
        await self._writer.drain()

    async def finish(self) -> None:
        """Say that nothing more will come; answers still can."""
        assert self._writer is not None
        self._writer.write_eof()

    async def answer(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer | None:
        """The next response; None: the connection has ended. Raises TimeoutError."""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._read()
        except (asyncio.IncompleteReadError, ConnectionError):
            answer = None
        if answer is None or not answer.keeps_alive:
            await self.close()
        return answer

    async def first_bytes(self, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
        """Some of a response, and no more."""
        assert self._reader is not None
        async with asyncio.timeout(timeout_s):
            return await self._reader.read(64)

    async def close(self, *, abort: bool = False) -> None:
        """End the connection; `abort`: with a reset."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if abort:
            writer.transport.abort()
        writer.close()
        with suppress(OSError):  # the other side was quicker
            await writer.wait_closed()

    async def _read(self) -> Answer:
        assert self._reader is not None
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        if "chunked" in headers.get("transfer-encoding", ""):
            return Answer(status, headers, await self._chunks())
        return Answer(
            status, headers, await self._reader.readexactly(int(headers.get("content-length", 0)))
        )

    async def _chunks(self) -> bytes:
        assert self._reader is not None
        parts = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readuntil(b"\r\n")
        return b"".join(parts)
