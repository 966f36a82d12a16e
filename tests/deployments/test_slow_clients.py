"""Clients that drip, against a real HTTP server in front of the application."""

import asyncio
import json
import time

import uvicorn

from tests.deployments.conftest import BuildApp
from tests.integration.hostile_bodies import TEXT, VALID, post
from tests.integration.raw_http import Connection
from tests.integration.serving import free_port, wait_until

BODY_TIMEOUT_S = 0.5
DATA = post(TEXT, json.dumps(VALID[TEXT]).encode())
NUM_SLOW = 50


def test_a_body_that_drips_is_given_up_and_others_are_answered_meanwhile(
    build_app: BuildApp,
) -> None:
    port = free_port()
    app = build_app(body_timeout_s=BODY_TIMEOUT_S)
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, lifespan="off", log_config=None, access_log=False)
    )

    async def drip() -> float:
        """Send a byte now and then until there is an answer; return the seconds until then."""
        connection = Connection(port)
        started = time.monotonic()
        await connection.send(DATA[:-60])
        answer = asyncio.create_task(connection.answer(5))
        for i in range(len(DATA) - 60, len(DATA) - 1):
            await asyncio.sleep(0.05)
            if answer.done():
                break
            await connection.send(DATA[i : i + 1])
        found = await answer
        assert found is not None
        assert found.status == 408
        assert json.loads(found.body)["error"]["code"] == "request_timeout"
        await connection.close()
        return time.monotonic() - started

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        await asyncio.to_thread(wait_until, lambda: server.started, 10, "the server has started")
        slow = [asyncio.create_task(drip()) for _ in range(NUM_SLOW)]
        quick = Connection(port)
        for _ in range(20):
            await quick.send(DATA)
            answer = await quick.answer(10)
            assert answer is not None
            assert answer.status == 200
        await quick.close()
        assert min(await asyncio.gather(*slow)) >= BODY_TIMEOUT_S
        server.should_exit = True
        await serving

    asyncio.run(run())
