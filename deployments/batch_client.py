"""Asks the service one request of a batch, again and again where that can help."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from typing import Any, Final

import httpx2
import msgspec

from deployments.batch_input import BatchRequest
from deployments.batch_output import BatchAnswer
from deployments.cli_client import error_message
from engine.errors import PageRayError

BATCH_PRIORITY: Final = 1
"""Class of requests that name none: behind all that have the usual 0."""
LONGEST_ANSWER_S: Final = 3600.0
LONGEST_RETRY_AFTER_S: Final = 600.0
REFUSALS: Final = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
"""Nobody looked at the request: it may be sent again."""
LOCKED_OUT: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
MAX_SHOWN_CHARACTERS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRules:
    """When to ask again, and when to give up."""

    first_wait_s: float = 1.0
    """Doubles with every try that fails, unless the service says how long to wait."""
    longest_wait_s: float = 60.0
    max_broken: int = 5
    """Connections that break over one request, while others of the batch are answered."""
    patience_s: float = 1800.0
    """Without an answer to any of the batch, after which it stops."""


class BatchClient:
    """Everything that one run asks. Several coroutines may share it."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        rules: RetryRules,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._rules = rules
        self._sleep = sleep
        self._num_answers = 0
        self._last_answer_s = time.monotonic()

    async def ask(self, request: BatchRequest) -> BatchAnswer:
        """Ask until there is an answer, or none to be hoped for.

        Raises PageRayError when the whole batch cannot go on: locked out, or nothing is answered
        any more.
        """
        content = msgspec.json.encode({"priority": BATCH_PRIORITY, **request.body})
        num_answers = self._num_answers
        num_broken = 0
        for num_tries in count():
            wait_s = None
            try:
                response = await self._client.post(request.url, content=content)
            except httpx2.TransportError as error:
                num_broken += 1
                failure = f"{type(error).__name__}: {error}".rstrip(": ")
                if num_broken >= self._rules.max_broken and self._num_answers > num_answers:
                    return BatchAnswer(None, {"code": "connection_error", "message": failure})
            else:
                if response.status_code not in REFUSALS:
                    return self._answer(response)
                failure = f"{response.status_code}: {error_message(_body(response))}"
                wait_s = _retry_after_s(response)
            self._check_patience(failure)
            await self._sleep(self._wait_s(num_tries) if wait_s is None else wait_s)
        raise AssertionError("count() has no end")

    def _answer(self, response: httpx2.Response) -> BatchAnswer:
        body = _body(response)
        if response.status_code in LOCKED_OUT:
            raise PageRayError(
                f"{self._client.base_url} answers {response.status_code}: {error_message(body)}",
                "Check --api-key, and run it again: it goes on where it stopped.",
            )
        self._num_answers += 1
        self._last_answer_s = time.monotonic()
        return BatchAnswer(response.status_code, body, response.headers.get("x-request-id", ""))

    def _check_patience(self, failure: str) -> None:
        if time.monotonic() - self._last_answer_s > self._rules.patience_s:
            raise PageRayError(
                f"{self._client.base_url} has answered nothing for "
                f"{self._rules.patience_s:g} s; the last was {failure}.",
                "See to the service, and run it again: it goes on where it stopped.",
            )

    def _wait_s(self, num_tries: int) -> float:
        # Not all at once: they failed together.
        longest = min(
            self._rules.first_wait_s * 2.0 ** min(num_tries, 30), self._rules.longest_wait_s
        )
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  no secret


def _body(response: httpx2.Response) -> Any:
    """Its JSON; what is none, of a proxy, as an error."""
    try:
        return msgspec.json.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = response.text[:MAX_SHOWN_CHARACTERS] or response.reason_phrase
        return {"error": {"message": message, "type": "no_json"}}


def _retry_after_s(response: httpx2.Response) -> float | None:
    try:
        # Dates, which no server of models sends, are not read.
        return min(max(float(response.headers["retry-after"]), 0.0), LONGEST_RETRY_AFTER_S)
    except (KeyError, ValueError):
        return None
