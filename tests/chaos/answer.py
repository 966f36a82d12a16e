"""What a client has got of an answer, read strictly: an event stream as it comes, or JSON whole."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.requests import ChaosRequest

DONE = b"data: [DONE]"
_EVENT_END = b"\n\n"


@dataclass(slots=True)
class Choice:
    """One choice so far."""

    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    """An entry for each token, as the server tells it."""
    finish_reasons: list[str] = field(default_factory=list)
    num_openings: int = 0
    """Times that its role was told."""


@dataclass(slots=True)
class Answer:
    """One answer; the times are the client's own, in seconds."""

    request: ChaosRequest
    started_s: float
    ended_s: float = 0.0
    status: int | None = None
    """Of HTTP; None while there is no answer."""
    id: str = ""
    choices: dict[int, Choice] = field(default_factory=lambda: defaultdict(Choice))
    usages: list[dict[str, Any]] = field(default_factory=list)
    num_done: int = 0
    cut: str = ""
    """How the connection ended, if not with the answer's end."""
    error: str = ""
    """What the server said in place of an answer, or of its rest."""
    disorders: list[str] = field(default_factory=list)
    """What no client should have to expect."""
    token_times_s: list[float] = field(default_factory=list)
    """When events with text or tokens came."""
    _unread: bytes = b""
    _envelope: dict[str, Any] = field(default_factory=dict)

    def feed(self, piece: bytes, now_s: float) -> None:
        """Take the next bytes of a stream."""
        *events, self._unread = (self._unread + piece).split(_EVENT_END)
        for event in events:
            self._take_event(event, now_s)

    def take_whole(self, body: bytes, now_s: float) -> None:
        """Take an answer that is no stream."""
        try:
            answer = json.loads(body)
        except ValueError:
            self.disorders.append(f"no JSON: {body[:200]!r}")
            return
        self._take_envelope(answer, {"chat.completion", "text_completion"})
        for told in answer["choices"]:
            choice = self.choices[told["index"]]
            message = told["message"]["content"] if self.request.is_chat else told["text"]
            choice.text += message
            choice.logprobs += _entries(told["logprobs"])
            choice.finish_reasons.append(told["finish_reason"])
        self.usages.append(answer["usage"])
        self.token_times_s.append(now_s)

    def refuse(self, body: bytes) -> None:
        """Take the body of an answer that is an error."""
        self.error = f"status {self.status}: {body[:300]!r}"
        try:
            told = json.loads(body)["error"]["message"]
        except (ValueError, LookupError, TypeError):
            # Not ours: who stands in front of the frontends has none to ask.
            self.cut = self.error
        else:
            assert isinstance(told, str)

    def close(self) -> None:
        """The stream has ended."""
        if self._unread:
            self.disorders.append(f"ends inside an event: {self._unread[:200]!r}")

    def _take_event(self, event: bytes, now_s: float) -> None:
        if self.num_done and event != DONE:
            self.disorders.append(f"an event after the last: {event[:200]!r}")
        if event == DONE:
            self.num_done += 1
            return
        if not event.startswith(b"data: ") or b"\n" in event:
            self.disorders.append(f"no event: {event[:200]!r}")
            return
        try:
            chunk = json.loads(event[6:])
        except ValueError:
            self.disorders.append(f"no JSON: {event[:200]!r}")
            return
        if "error" in chunk:
            self.error = json.dumps(chunk["error"])
            return
        try:
            self._take_chunk(chunk, now_s)
        except (LookupError, TypeError) as error:
            self.disorders.append(f"{error!r} in {event[:200]!r}")

    def _take_chunk(self, chunk: dict[str, Any], now_s: float) -> None:
        self._take_envelope(chunk, {"chat.completion.chunk", "text_completion"})
        if chunk.get("usage"):
            self.usages.append(chunk["usage"])
        elif self.usages:
            self.disorders.append("a chunk after the usage")
        for told in chunk["choices"]:
            self._take_choice(told, now_s)

    def _take_envelope(self, told: dict[str, Any], objects: set[str]) -> None:
        envelope = {name: told[name] for name in ("id", "object", "created", "model")}
        if not self._envelope:
            self._envelope, self.id = envelope, told["id"]
            if told["object"] not in objects:
                self.disorders.append(f"the object is {told['object']}")
        elif envelope != self._envelope:
            self.disorders.append(f"{self._envelope} became {envelope}")

    def _take_choice(self, told: dict[str, Any], now_s: float) -> None:
        choice = self.choices[told["index"]]
        if self.request.is_chat:
            opens = "role" in told["delta"]
            if opens == bool(choice.num_openings):
                self.disorders.append(f"choice {told['index']} opened {choice.num_openings} times")
            choice.num_openings += opens
            text = told["delta"].get("content") or ""
        else:
            text = told["text"]
        entries = _entries(told["logprobs"])
        if (text or entries) and choice.finish_reasons:
            self.disorders.append(f"choice {told['index']} goes on after its end")
        choice.text += text
        choice.logprobs += entries
        if text or entries:
            self.token_times_s.append(now_s)
        if told["finish_reason"] is not None:
            choice.finish_reasons.append(told["finish_reason"])


def _entries(told: dict[str, Any] | None) -> list[Any]:
    """An entry for each token, from either form."""
    if told is None:
        return []
    if "content" in told:
        return list(told["content"])
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return [list(entry) for entry in zip(*(told[name] for name in names), strict=True)]
