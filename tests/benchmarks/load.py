"""A load generator for completion endpoints: streaming over plain sockets.

Its own client, since a general one costs more CPU per token than the server under test.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.workload import Ask

Fields = Callable[[Ask], Mapping[str, object]]


@dataclass(slots=True)
class Timing:
    """What one request saw; times in seconds since its start."""

    ttft_s: float = 0.0
    e2e_s: float = 0.0
    num_tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)

    @property
    def tpot_s(self) -> float:
        """Seconds for each token after the first."""
        return (self.e2e_s - self.ttft_s) / max(self.num_tokens - 1, 1)


def by_token_ids(ask: Ask) -> Mapping[str, object]:
    """The prompt as token ids, and an end of text that ends nothing: vLLM's dialect."""
    return {"prompt": ask.prompt_token_ids, "ignore_eos": True}


async def complete(
    host: str,
    port: int,
    model: str,
    ask: Ask,
    fields: Fields = by_token_ids,
    headers: Mapping[str, str] | None = None,
) -> Timing:
    """Stream one completion. Raises RuntimeError unless it ends as asked."""
    body = {
        "model": model,
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields(ask),
    }
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        + "\r\n"
    )
    timing = Timing()
    started = time.perf_counter()
    # The longest lines are of prompts that a server sends back.
    reader, writer = await asyncio.open_connection(host, port, limit=2**20)
    try:
        writer.write(head.encode() + payload)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status!r} {await reader.read()!r}")
        await _follow(reader, timing, started)
    finally:
        writer.close()
    if timing.num_tokens != ask.max_tokens:
        raise RuntimeError(f"stream ended after {timing.num_tokens} of {ask.max_tokens} tokens")
    return timing


async def _follow(reader: asyncio.StreamReader, timing: Timing, started: float) -> None:
    """Read events up to the end of the stream."""
    last = started
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        now = time.perf_counter()
        if line.startswith(b"data: [DONE]"):
            break
        chunk: dict[str, Any] = json.loads(line[6:])
        if "error" in chunk:
            raise RuntimeError(str(chunk))
        if chunk.get("usage"):
            timing.num_tokens = chunk["usage"]["completion_tokens"]
            continue  # some servers send it with an empty choice
        if not timing.ttft_s:
            timing.ttft_s = now - started
        else:
            timing.gaps_s.append(now - last)
        timing.e2e_s = now - started
        last = now


async def run_load(
    host: str,
    port: int,
    model: str,
    asks: list[Ask],
    concurrency: int,
    fields: Fields = by_token_ids,
) -> tuple[list[Timing], float]:
    """Send all requests, at most `concurrency` at once; return timings and wall seconds."""
    seats = asyncio.Semaphore(concurrency)

    async def one(ask: Ask) -> Timing:
        async with seats:
            return await complete(host, port, model, ask, fields)

    started = time.perf_counter()
    timings = await asyncio.gather(*(one(ask) for ask in asks))
    return list(timings), time.perf_counter() - started
