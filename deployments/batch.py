"""Runs a batch: a bounded number of its requests at a time, each answer written as it comes."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import httpx2

from deployments.batch_client import LONGEST_ANSWER_S, BatchClient, RetryRules
from deployments.batch_input import BatchRequest
from deployments.batch_output import BatchAnswer, BatchOutput
from engine.errors import PageRayError

CONNECT_TIMEOUT_S: Final = 10.0
STOPS: Final = (signal.SIGINT, signal.SIGTERM)


def run_batch(
    requests: Iterator[BatchRequest],
    output: BatchOutput,
    on_answer: Callable[[BatchAnswer], None],
    *,
    url: str,
    api_key: str | None,
    concurrency: int,
    rules: RetryRules | None = None,
    trust_env: bool = False,
) -> None:
    """Ask all that `output` has no answer to.

    Args:
        requests: the whole batch; read no further ahead than is asked.
        output: where answers go.
        on_answer: is told of each once it is written.
        url: where the service listens.
        api_key: the key that it wants, if any.
        concurrency: requests under way at once.
        rules: when to ask again; None: the usual ones.
        trust_env: whether the environment may name a proxy for `url`.

    Raises PageRayError when the batch cannot go on, and KeyboardInterrupt on SIGINT and SIGTERM.
    What is written already stays in both cases, and the next run goes on from there.
    """
    headers = {"content-type": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    # Read by several, each request by one.
    left = (each for each in requests if each.custom_id not in output.answered)

    async def work(client: BatchClient) -> None:
        for request in left:
            answer = await client.ask(request)
            output.append(request.custom_id, answer)
            on_answer(answer)

    async def run() -> None:
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        timeout = httpx2.Timeout(LONGEST_ANSWER_S, connect=CONNECT_TIMEOUT_S)
        async with (
            httpx2.AsyncClient(
                base_url=url, headers=headers, limits=limits, timeout=timeout, trust_env=trust_env
            ) as http,
            asyncio.TaskGroup() as group,
        ):
            client = BatchClient(http, rules or RetryRules())
            for _ in range(concurrency):
                group.create_task(work(client))

    if not asyncio.run(_unless_stopped(run())):
        raise KeyboardInterrupt


async def _unless_stopped(work: Coroutine[Any, Any, None]) -> bool:
    """Whether it ran to its end. Signals cancel it between two lines, not within one."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in STOPS}
    task = asyncio.create_task(work)
    for number in STOPS:
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return False
    except BaseExceptionGroup as group:
        # The first stopped the others; two of a kind say the same.
        raise _first(group) from group
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
    return True


def _first(group: BaseExceptionGroup) -> BaseException:
    known = group.subgroup(PageRayError) or group
    first = known.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
