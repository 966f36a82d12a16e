"""Stops work for clients that have hung up, or that hold the line without listening."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive


async def run_until_disconnect(
    work: Coroutine[Any, Any, None],
    receive: Receive,
    is_stuck: Callable[[], bool],
    *,
    check_period_s: float,
) -> None:
    """Run `work`; when the client leaves first, cancel it and raise ClientDisconnect.

    The request's body must have been read. Returns only after the work has cleaned up.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        while not worker.done():
            done, _ = await asyncio.wait(
                {worker, watcher}, timeout=check_period_s, return_when=asyncio.FIRST_COMPLETED
            )
            # A client that does not read would keep its KV blocks for ever.
            if worker not in done and (watcher in done or is_stuck()):
                raise ClientDisconnect
        worker.result()
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
