"""`pageray chat` against a function that stands for the service."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from rich.console import Console

from deployments.cli_chat import chat
from engine.errors import PageRayError

Handler = Callable[[dict[str, Any]], httpx2.Response]
MODELS = {"data": [{"id": "tiny"}, {"id": "other"}]}


def typed(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """What the user types, then Ctrl-D."""
    left = iter(lines)

    def read_line(_prompt: str) -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read_line


class Talk:
    """A chat whose answers come from `handle`, with what was asked and what was shown."""

    def __init__(self, handle: Handler) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._handle = handle
        self._shown = io.StringIO()

    def run(
        self,
        read_line: Callable[[str], str],
        model: str | None = None,
        temperature: float | None = None,
    ) -> str:
        transport = httpx2.MockTransport(self._answer)
        with httpx2.Client(base_url="http://there", transport=transport) as client:
            chat(client, model, Console(file=self._shown, width=200), read_line, temperature)
        return self._shown.getvalue()

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json=MODELS)
        assert request.url.path == "/v1/chat/completions"
        body = json.loads(request.content)
        self.bodies.append(body)
        return self._handle(body)


def events(*pieces: str) -> bytes:
    chunks = [{"choices": [{"delta": {"role": "assistant"}}]}]
    chunks += [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    chunks += [{"choices": [], "usage": {"total_tokens": 3}}]  # type: ignore[dict-item]
    return b"".join(f"data: {json.dumps(c)}\n\n".encode() for c in chunks) + b"data: [DONE]\n\n"


def test_answers_are_streamed_and_remembered() -> None:
    answers = iter([events("Pa", "ris", "!"), events("2 million [sic]")])
    talk = Talk(lambda _: httpx2.Response(200, content=next(answers)))
    shown = talk.run(typed("Capital of France?", "", "And how big?"))
    assert "Paris!" in shown
    assert "2 million [sic]" in shown, "text of the model is no markup"
    assert [body["model"] for body in talk.bodies] == ["tiny", "tiny"]
    assert all(body["stream"] for body in talk.bodies)
    assert talk.bodies[1]["messages"] == [
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "Paris!"},
        {"role": "user", "content": "And how big?"},
    ]


def test_named_model_is_asked() -> None:
    talk = Talk(lambda _: httpx2.Response(200, content=events("yes")))
    talk.run(typed("Here?"), model="mine")
    assert talk.bodies[0]["model"] == "mine"
    assert "temperature" not in talk.bodies[0], "that is the service's matter"


def test_a_temperature_is_asked_for() -> None:
    talk = Talk(lambda _: httpx2.Response(200, content=events("yes")))
    talk.run(typed("Here?"), temperature=0.0)
    assert talk.bodies[0]["temperature"] == 0


class Interrupted(httpx2.SyncByteStream):
    """An answer during which the user presses Ctrl-C."""

    closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield events("Once upon").removesuffix(b"data: [DONE]\n\n")
        raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


def test_ctrl_c_stops_the_answer_and_keeps_what_came() -> None:
    stream = Interrupted()
    responses = iter([httpx2.Response(200, stream=stream), httpx2.Response(200, content=events())])
    talk = Talk(lambda _: next(responses))
    shown = talk.run(typed("Tell a story", KeyboardInterrupt, "Go on"))
    assert "(stopped)" in shown
    assert stream.closed, "the server must see the disconnect, or it goes on computing"
    assert talk.bodies[1]["messages"][1:] == [
        {"role": "assistant", "content": "Once upon"},
        {"role": "user", "content": "Go on"},
    ]


@pytest.mark.parametrize(
    "response",
    [
        httpx2.Response(200, content=b'data: {"error": {"message": "The replica died."}}\n\n'),
        httpx2.Response(503, json={"error": {"message": "The replica died."}}),
    ],
)
def test_failed_answer_is_shown_and_not_remembered(response: httpx2.Response) -> None:
    responses = iter([response, httpx2.Response(200, content=events("yes"))])
    talk = Talk(lambda _: next(responses))
    shown = talk.run(typed("Hello?", "Hello again?"))
    assert "The replica died." in shown
    assert talk.bodies[1]["messages"] == [{"role": "user", "content": "Hello again?"}]


def test_service_without_a_model_is_an_error() -> None:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json={"data": []}))
    client = httpx2.Client(base_url="http://there", transport=transport)
    with client, pytest.raises(PageRayError, match="serves no model"):
        chat(client, None, Console(file=io.StringIO()), typed())
