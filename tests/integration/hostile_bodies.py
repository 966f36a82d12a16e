"""Requests that no client should send, as the bytes of HTTP/1.1, the same ones for a seed."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
VALID: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "stop": ["x"]},
    TEXT: {"prompt": "Once upon", "max_tokens": 2, "temperature": 0, "logit_bias": {"7": 1}},
    "/tokenize": {"prompt": "Once upon a time", "add_special_tokens": True},
    "/detokenize": {"tokens": [1, 2, 3]},
}
PATHS = list(VALID)
WORST: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, -(2**70), 1e308, 1.5, "", "x", "\0", "🗼", [], {}, [[]],
    [None], [{}], {"": None}, [1, "x"], ["a"] * 3000, "\ud7ff" * 5000, [2**40], {"7": {}},
]  # fmt: skip
LITERALS = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 4000, b"-" + b"9" * 400, b"0x1",
    b"01", b"1.", b".5", b"+1", b"'a'", b'"\\ud800"', b'"\\u12"', b'"\n"', b'"\xff"',
    b'"\xed\xa0\x80"', b'"\xc0\x80"', b"tru", b"undefined", b"[1,]", b'{"a":1,}', b"/**/1", b"{",
    b"]", b"",
]  # fmt: skip
MAX_BODY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Hostile:
    """One request, whole: its body has the length that its head says, where `is_http`."""

    kind: str
    data: bytes
    is_http: bool = True
    """Whether HTTP itself is well formed, so that the answer is PageRay's own."""


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request with this body; its length is said unless a header is about that."""
    about_length = ("content-length", "transfer-encoding")
    lines = [f"POST {path} HTTP/1.1", "host: test", "content-type: application/json", *headers]
    if not any(header.lower().startswith(about_length) for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def hostile_requests(seed: int, count: int) -> Iterator[Hostile]:
    """So many, of every kind in turn."""
    rng = random.Random(seed)
    for i in range(count):
        kind, make, is_http = KINDS[i % len(KINDS)]
        yield Hostile(kind, make(rng, rng.choice(PATHS)), is_http)


def oversize_requests() -> list[Hostile]:
    """Bodies larger than are taken: said at once, or in chunks whose sum nobody knows before."""
    part = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    said = [post(path, b" " * (MAX_BODY_BYTES + 1)) for path in PATHS]
    chunked = [post(path, part * 5 + b"0\r\n\r\n", CHUNKED) for path in PATHS]
    return [Hostile("oversize", data) for data in said + chunked]


CHUNKED = "transfer-encoding: chunked"


def _valid(path: str) -> bytes:
    return json.dumps(VALID[path]).encode()


def _mutated(rng: random.Random, path: str) -> bytes:
    body = bytearray(_valid(path))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(4):
            case 0:
                body[at : at + rng.randint(1, 5)] = b""
            case 1:
                body[at:at] = rng.randbytes(rng.randint(1, 4))
            case 2:
                body[at : at + 1] = bytes([rng.choice(b'{}[]",:0-e\\ ')])
            case _:
                body[at:at] = body[rng.randrange(len(body) + 1) :][:12]
    return post(path, bytes(body))


def _truncated(rng: random.Random, path: str) -> bytes:
    body = _valid(path)
    return post(path, body[: rng.randrange(len(body))])


def _wrong_types(rng: random.Random, path: str) -> bytes:
    body = dict(VALID[path])
    for _ in range(rng.randint(1, 3)):
        body[rng.choice([*body, "temperature", "n", "seed", "stream", "tools"])] = rng.choice(WORST)
    return post(path, json.dumps(body).encode())


def _wrong_messages(rng: random.Random, path: str) -> bytes:
    message = {
        "role": "user",
        "content": "Hi",
        rng.choice(["role", "content", "x"]): rng.choice(WORST),
    }
    return post(CHAT, json.dumps({"messages": [message] * rng.choice([1, 2, 2000])}).encode())


def _literals(rng: random.Random, path: str) -> bytes:
    literal = rng.choice(LITERALS)
    name = rng.choice([*VALID[path], "temperature", "deadline_s", "seed", "user"])
    return post(path, _valid(path)[:-1] + b',"%b":%b}' % (name.encode(), literal))


def _duplicate_keys(rng: random.Random, path: str) -> bytes:
    name, value = rng.choice(list(VALID[path].items()))
    again = json.dumps({name: rng.choice([value, rng.choice(WORST)])}).encode()[1:]
    return post(path, _valid(path)[:-1] + b"," + again)


def _deep(rng: random.Random, path: str) -> bytes:
    depth = 100_000 if rng.random() < 0.2 else rng.choice([200, 1_000, 10_000])
    left, right = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    nested = left * depth + b"1" + right * depth * rng.randrange(2)
    name = rng.choice([*VALID[path], "metadata", "chat_template_kwargs"]).encode()
    return post(path, rng.choice([nested, _valid(path)[:-1] + b',"%b":%b}' % (name, nested)]))


def _noise(rng: random.Random, path: str) -> bytes:
    noise = rng.randbytes(rng.choice([0, 1, 3, 100, 5_000]))
    return post(
        path, rng.choice([noise, b"", b" \n", b"\xef\xbb\xbf" + _valid(path), b"null", b"[]"])
    )


def _chunked(rng: random.Random, path: str) -> bytes:
    body = rng.choice([_valid(path), _valid(path)[:-1], b"\xff"])
    at = rng.randrange(1, len(body) + 1)
    parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:at], body[at:]) if part)
    return post(path, parts + b"0\r\n\r\n", CHUNKED)


def _odd_headers(rng: random.Random, path: str) -> bytes:
    value = rng.choice(["", "x" * 3000, "é", "🗼", "%00", "-1", "nan", '{"a":1}'])
    names = [
        "content-type",
        "x-session-id",
        "x-request-id",
        "authorization",
        "accept",
        "traceparent",
    ]
    return post(path, _valid(path), f"{rng.choice(names)}: {value}")


def _broken_chunks(rng: random.Random, path: str) -> bytes:
    body = _valid(path)
    size = rng.choice([b"-1", b"zz", b"", b"fffffffffffffffff", b"0x10", b"1 1"])
    return post(path, size + b"\r\n" + body + b"\r\n0\r\n\r\n", CHUNKED)


def _wrong_lengths(rng: random.Random, path: str) -> bytes:
    body = _valid(path)
    said = rng.choice(
        [
            [f"content-length: {len(body) + rng.randint(1, 999)}"],  # more than comes
            [f"content-length: {rng.randrange(len(body))}"],  # less: the rest is no request
            [f"content-length: {-len(body)}"],
            ["content-length: 1e3"],
            ["content-length: "],
            ["content-length: " + "9" * 30],
            [f"content-length: {len(body)}", f"content-length: {len(body) - 1}"],
            [CHUNKED, f"content-length: {len(body)}"],
            ["transfer-encoding: gzip, nonsense"],
        ]
    )
    return post(path, body, *said)


def _no_length(rng: random.Random, path: str) -> bytes:
    head, _, _ = post(path, b"").partition(b"content-length")
    return head + b"\r\n" + _valid(path)


def _no_http(rng: random.Random, path: str) -> bytes:
    data = post(path, _valid(path))
    at = rng.randrange(data.index(b"\r\n\r\n"))
    with_delete = post(path, _valid(path), "x-session-id: \x7f")
    inserted = data[:at] + rng.randbytes(3) + data[at:]
    return rng.choice([rng.randbytes(200), inserted, with_delete, b"\r\n" * 50])


KINDS: list[tuple[str, Callable[[random.Random, str], bytes], bool]] = [
    *(
        (make.__name__.strip("_"), make, True)
        for make in (
            _mutated, _truncated, _wrong_types, _wrong_messages, _literals, _mutated,
            _duplicate_keys, _deep, _noise, _chunked, _odd_headers, _wrong_types,
        )
    ),
    *(
        (make.__name__.strip("_"), make, False)
        for make in (_broken_chunks, _wrong_lengths, _no_length, _no_http)
    ),
]  # fmt: skip
