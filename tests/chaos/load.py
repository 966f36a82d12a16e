"""Keep requests coming and judge every answer.

In a closed loop a number of clients each send the next request when the last one has ended; in an
open one requests come at a rate, whatever becomes of them.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tests.chaos.answer import Answer
from tests.chaos.http_client import Cut, exchange, get_json
from tests.chaos.oracle import Judgement, judge
from tests.chaos.requests import ChaosRequest

ANSWER_TIMEOUT_S = 120.0
"""After that a client takes its answer for lost."""
WHY_TIMEOUT_S = 5.0
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request and what came of it."""

    answer: Answer
    judgement: Judgement
    url: str
    is_direct: bool = False
    """Whether it went to one certain frontend, past HAProxy."""
    num_attempts: int | None = None
    """Replicas that it was placed on, one after the other; None: nobody asked, or knew."""


async def send(
    url: str, request: ChaosRequest, on_piece: Callable[[Answer], None] | None = None
) -> Answer:
    """Send a request and read its answer to the end, whatever that is."""
    answer = Answer(request, time.monotonic())
    try:
        async with (
            asyncio.timeout(ANSWER_TIMEOUT_S),
            exchange(url, request.path, request.body) as response,
        ):
            answer.status = response.status
            if response.status != 200:
                answer.refuse(await response.read())
            elif request.streams:
                async for piece in response.body:
                    answer.feed(piece, time.monotonic())
                    if on_piece is not None:
                        on_piece(answer)
                answer.close()
            else:
                answer.take_whole(await response.read(), time.monotonic())
    except Cut as error:
        answer.cut = str(error)
    except TimeoutError:
        answer.cut = f"no end within {ANSWER_TIMEOUT_S:g} s"
    except OSError as error:
        answer.cut = f"no connection: {error}"
    answer.ended_s = time.monotonic()
    return answer


async def undisturbed(url: str, requests: Sequence[ChaosRequest]) -> dict[str, Answer]:
    """The answers of a cluster that does nothing else, one by one, by the names of requests.

    Raises AssertionError for one that is none.
    """
    answers = {}
    for request in requests:
        answer = await send(url, request)
        found = judge(answer, None)
        assert not found.reason, f"{request.name}, undisturbed: {found.reason}"
        if request.is_repeatable:
            answers[request.name] = answer
    return answers


class Load:
    """Requests drawn from a mix by a seed, and the outcomes so far."""

    def __init__(
        self,
        urls: Sequence[str],
        requests: Sequence[ChaosRequest],
        expected: Mapping[str, Answer],
        *,
        seed: int,
        is_disturbed: Callable[[Answer], bool] = lambda _: False,
    ) -> None:
        """`is_disturbed` tells of an answer whether a fault happened while it came."""
        self._urls = urls
        self.frontend_urls: Sequence[str] = ()
        """Every other request goes to one of these, if there are any."""
        self._requests = requests
        self._expected = expected
        self._draw = random.Random(f"load {seed}")
        self._is_disturbed = is_disturbed
        self._is_over = asyncio.Event()
        self.outcomes: list[Outcome] = []
        self.num_open = 0

    def finish(self) -> None:
        """Send nothing more; what is open goes on to its end."""
        self._is_over.set()

    async def run_closed(self, num_clients: int) -> None:
        """Keep so many requests open until told to finish."""

        async def client() -> None:
            while not self._is_over.is_set():
                await self._ask()

        await asyncio.gather(*(client() for _ in range(num_clients)))

    async def run_open(self, rate: float) -> None:
        """Send so many requests a second, at random (Poisson), until told to finish."""
        async with asyncio.TaskGroup() as tasks:
            while not self._is_over.is_set():
                tasks.create_task(self._ask())
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._draw.expovariate(rate)):
                        await self._is_over.wait()

    async def _ask(self) -> None:
        request = self._draw.choice(self._requests)
        is_direct = bool(self.frontend_urls) and self._draw.random() < 0.5
        url = self._draw.choice(self.frontend_urls if is_direct else self._urls)
        self.num_open += 1
        try:
            answer = await send(url, request)
        finally:
            self.num_open -= 1
        judgement = judge(answer, self._expected.get(request.name))
        found = await num_attempts(url, answer.id) if self._is_disturbed(answer) else None
        self.outcomes.append(Outcome(answer, judgement, url, is_direct, found))
        if answer.cut:
            await asyncio.sleep(RETRY_S)  # nobody is there at the moment


async def num_attempts(url: str, answer_id: str) -> int | None:
    """Replicas that a request was placed on; None: nobody knows, or answers."""
    try:
        async with asyncio.timeout(WHY_TIMEOUT_S):
            why = await get_json(url, f"/status/why/{answer_id}")
    except (Cut, OSError, TimeoutError, LookupError):
        return None
    return len(why["decisions"])
