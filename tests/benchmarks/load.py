"""A load generator for the HTTP endpoint: streaming completions over plain sockets.

Its own client, since a general one costs more CPU per token than the server under test.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field

from tests.benchmarks.workload import Ask


@dataclass(slots=True)
class Timing:
    """What one request saw; times in seconds since its start."""

    ttft_s: float = 0.0
    e2e_s: float = 0.0
    num_tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)


async def complete(host: str, port: int, model: str, ask: Ask) -> Timing:
    """Stream one completion. Raises RuntimeError unless it ends as asked."""
    body = json.dumps(
        {
            "model": model,
            "prompt": ask.prompt_token_ids,
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    timing = Timing()
    started = last = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head.encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r} {await reader.read()!r}")
    done = False
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        now = time.perf_counter()
        if line.startswith(b"data: [DONE]"):
            done = True
            break
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise RuntimeError(str(chunk))
        if chunk.get("usage"):
            timing.num_tokens = chunk["usage"]["completion_tokens"]
        elif not timing.ttft_s:
            timing.ttft_s = now - started
        else:
            timing.gaps_s.append(now - last)
        last = now
    timing.e2e_s = time.perf_counter() - started
    writer.close()
    if not done or timing.num_tokens != ask.max_tokens:
        raise RuntimeError(f"stream ended after {timing.num_tokens} of {ask.max_tokens} tokens")
    return timing


async def run_load(
    host: str, port: int, model: str, asks: list[Ask], concurrency: int
) -> tuple[list[Timing], float]:
    """Send all requests, at most `concurrency` at once; return timings and wall seconds."""
    seats = asyncio.Semaphore(concurrency)

    async def one(ask: Ask) -> Timing:
        async with seats:
            return await complete(host, port, model, ask)

    started = time.perf_counter()
    timings = await asyncio.gather(*(one(ask) for ask in asks))
    return list(timings), time.perf_counter() - started
