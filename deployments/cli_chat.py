"""`pageray chat`: a conversation in the terminal, streamed as the model writes it."""

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from typing import Any

import httpx2
from rich.console import Console

from deployments.cli_client import check, error_message, explained, get_json
from engine.errors import PageRayError

with suppress(ImportError):  # some builds of Python lack it
    import readline  # noqa: F401  gives input() line editing and history


def chat(
    client: httpx2.Client,
    model: str | None,
    console: Console,
    read_line: Callable[[str], str] = input,
    temperature: float | None = None,
) -> None:
    """Talk until Ctrl-D. Ctrl-C stops the answer that is being written."""
    conversation = Conversation(client, model or served_model(client), temperature)
    console.print(
        f"[bold]{conversation.model}[/] at {client.base_url}\n"
        "Ctrl-C stops an answer, Ctrl-D leaves.\n",
        highlight=False,
    )
    while True:
        try:
            question = read_line("> ").strip()
        except KeyboardInterrupt:
            console.print()  # as a shell does: drop the line, stay
            continue
        except EOFError:
            console.print()
            return
        if question:
            _show_answer(conversation, question, console)


def _show_answer(conversation: "Conversation", question: str, console: Console) -> None:
    try:
        with closing(conversation.ask(question)) as pieces:
            for text in pieces:
                console.out(text, end="", highlight=False)
        console.print("\n")
    except KeyboardInterrupt:
        console.print("\n[dim](stopped)[/]\n", highlight=False)
    except PageRayError as error:
        console.print(f"\n[red]{error.cause}[/]\n{error.fix}\n", highlight=False)


def served_model(client: httpx2.Client) -> str:
    """Name of the first model the service has."""
    models = get_json(client, "/v1/models").get("data") or []
    if not models:
        raise PageRayError(
            f"{client.base_url} serves no model.", "Wait until it has started, or check --url."
        )
    return str(models[0]["id"])


class Conversation:
    """The messages so far. An answer that was cut short stays as far as it came."""

    def __init__(self, client: httpx2.Client, model: str, temperature: float | None = None) -> None:
        self.model = model
        self._settings = {} if temperature is None else {"temperature": temperature}
        self.messages: list[dict[str, str]] = []
        self._client = client

    def ask(self, question: str) -> Generator[str, None, None]:
        """Yield the answer piece by piece."""
        messages = [*self.messages, {"role": "user", "content": question}]
        answer = ""
        try:
            for piece in self._stream(messages):
                answer += piece
                yield piece
        finally:
            if answer:
                self.messages = [*messages, {"role": "assistant", "content": answer}]

    def _stream(self, messages: list[dict[str, str]]) -> Iterator[str]:
        body = {"model": self.model, "messages": messages, "stream": True, **self._settings}
        with (
            explained(self._client),
            self._client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            check(response)
            for event in _events(response):
                if "error" in event:
                    raise PageRayError(
                        f"The answer broke off: {error_message(event)}", "Ask again."
                    )
                for choice in event.get("choices", []):
                    yield choice["delta"].get("content") or ""


def _events(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    # PageRay writes one `data:` line for each event.
    for line in response.iter_lines():
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            yield json.loads(data)
