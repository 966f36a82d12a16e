"""Reads arrival traces: when requests came, how long they were, whose, and what they share.

Formats, told by their first line, gzipped or not:
- Mooncake's JSON lines: `timestamp` (ms, in steps of 3 s, which are spread), `input_length`,
  `output_length`, `hash_ids` (prefix blocks of 512 tokens; requests share a prefix as far as their
  lists are equal from the front).
- Azure's CSV: `TIMESTAMP` (UTC), `ContextTokens`, `GeneratedTokens`.
- ServeGen's CSV: `arrival_s`, `tenant`, `input_tokens`, `output_tokens`.
"""

import csv
import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

from engine.errors import InvalidConfig

HASH_BLOCK_TOKENS: Final = 512
"""Tokens that one of a request's `prefix_ids` stands for."""
_GZIP_MAGIC = b"\x1f\x8b"
_TOKEN_IDS = 1 << 31
_SAME_TICK_S = 0.01
_COARSE_SHARE = 0.5
"""With less ticks than so many for each request a clock is coarse."""
_SPREAD = 2_654_435_761  # odd, so that numbers of requests and of prefixes stay apart


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request of a trace."""

    number: int
    """Its place in the trace."""
    arrival_s: float
    """From the first arrival."""
    num_input_tokens: int
    num_output_tokens: int
    tenant: str = ""
    prefix_ids: tuple[int, ...] = ()
    """What the prompt consists of, `num_prefix_tokens` tokens each; empty: like no other."""
    num_prefix_tokens: int = HASH_BLOCK_TOKENS
    copy: int = 0
    """Of the trace it was made of (cluster/simulation/shaping.py): copies share no prompts."""

    @property
    def cache_salt(self) -> str:
        """Names those with whom it may share cached prompts."""
        return f"{self.tenant}/{self.copy}" if self.copy else self.tenant

    def prompt(self) -> list[int]:
        """Return token ids that two requests share exactly as far as their prefixes agree."""
        parts = [[prefix_id] * self.num_prefix_tokens for prefix_id in self.prefix_ids]
        tokens = list(itertools.chain.from_iterable(parts))[: self.num_input_tokens]
        own = (self.number * _SPREAD + 1) % _TOKEN_IDS
        return tokens + [own] * (self.num_input_tokens - len(tokens))


def read_trace(path: Path) -> list[TraceRequest]:
    """Return a trace in order of arrival, from 0 s on.

    Raises InvalidConfig with the line that is wrong.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"Cannot read the trace '{path}': {error}.", _HELP) from error
    lines = text.splitlines()
    if not lines:
        raise InvalidConfig(f"The trace '{path}' is empty.", _HELP)
    rows, parse, first = _rows(lines)
    requests = []
    for i, row in enumerate(rows):
        try:
            requests.append(replace(parse(row), number=i))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidConfig(
                f"Line {i + first} of the trace '{path}' is wrong: {error!r}.", _HELP
            ) from error
    return _spread(_from_zero(requests))


_HELP = (
    "Use JSON lines with timestamp, input_length and output_length, or CSV with TIMESTAMP, "
    "ContextTokens and GeneratedTokens, or with arrival_s, input_tokens and output_tokens."
)
_Parse = Callable[[Any], TraceRequest]


def _rows(lines: list[str]) -> tuple[Iterator[Any], _Parse, int]:
    """Return the rows, what makes a request of one, and the number of the first one's line."""
    if lines[0].lstrip().startswith("{"):
        return (_json_row(line) for line in lines), _of_mooncake, 1
    parse = _of_azure if "ContextTokens" in lines[0] else _of_servegen
    return csv.DictReader(lines), parse, 2


def _json_row(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line  # which has no fields: the error then names it


def _of_mooncake(row: dict[str, Any]) -> TraceRequest:
    return _request(
        int(row["timestamp"]) / 1000,
        row["input_length"],
        row["output_length"],
        prefix_ids=tuple(int(i) for i in row.get("hash_ids", ())),
    )


def _of_azure(row: dict[str, str]) -> TraceRequest:
    day, _, fraction = row["TIMESTAMP"].partition(".")
    seconds = datetime.fromisoformat(f"{day}+00:00").timestamp()
    fraction = fraction.removesuffix("Z").partition("+")[0]
    arrival_s = seconds + float(f"0.{fraction or 0}")
    return _request(arrival_s, row["ContextTokens"], row["GeneratedTokens"])


def _of_servegen(row: dict[str, str]) -> TraceRequest:
    return _request(
        float(row["arrival_s"]),
        row["input_tokens"],
        row["output_tokens"],
        tenant=row.get("tenant") or "",
    )


def _request(arrival_s: float, num_input: Any, num_output: Any, **others: Any) -> TraceRequest:
    # What answers nothing, or was asked nothing, still takes a token of each.
    return TraceRequest(
        number=0,
        arrival_s=arrival_s,
        num_input_tokens=max(1, int(num_input)),
        num_output_tokens=max(1, int(num_output)),
        **others,
    )


def _from_zero(requests: list[TraceRequest]) -> list[TraceRequest]:
    if not requests:
        raise InvalidConfig("The trace has no request.", _HELP)
    requests = sorted(requests, key=lambda request: request.arrival_s)
    start = requests[0].arrival_s
    return [replace(request, arrival_s=request.arrival_s - start) for request in requests]


def _spread(requests: list[TraceRequest]) -> list[TraceRequest]:
    """Spread those of one tick of a coarse clock over it, in their order.

    Mooncake's conversations come every 3 s, ten at once, give or take a millisecond. Clients do
    not: what ten frontends do at the same instant would be judged by the clock that wrote the log.
    """
    ticks: list[list[TraceRequest]] = []
    for request in requests:
        if ticks and request.arrival_s - ticks[-1][0].arrival_s < _SAME_TICK_S:
            ticks[-1].append(request)
        else:
            ticks.append([request])
    if len(ticks) == 1 or len(ticks) > _COARSE_SHARE * len(requests):
        return requests
    starts = [tick[0].arrival_s for tick in ticks]
    tick_s = median(end - begin for begin, end in pairwise(starts))
    return [
        replace(request, arrival_s=start + tick_s * i / len(tick))
        for start, tick in zip(starts, ticks, strict=True)
        for i, request in enumerate(tick)
    ]
