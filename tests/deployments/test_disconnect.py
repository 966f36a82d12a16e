"""A client that leaves has its request aborted at once, whatever it was waiting for."""

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.types import Message

from tests.deployments.asgi_client import AsgiCall, call
from tests.deployments.conftest import BuildApp
from tests.deployments.fake_token_source import FakeTokenSource

BODIES: list[dict[str, Any]] = [
    {"prompt": "a"},
    {"prompt": "a", "stream": True},
    {"prompt": ["a", "b"]},
    {"prompt": ["a", "b"], "n": 2, "stream": True},
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("pause_after", [0, 2])
def test_hanging_up_closes_the_source_before_and_between_tokens(
    app: Starlette, source: FakeTokenSource, body: dict[str, Any], pause_after: int
) -> None:
    source.pause_after = pause_after

    async def run() -> None:
        request = AsgiCall(app, "/v1/completions", body)
        task = asyncio.create_task(request.run())
        await source.paused.wait()
        assert source.num_open > 0
        request.hang_up()
        await task
        assert source.num_open == 0
        assert source.num_closed_early == len(source.requests)

    asyncio.run(run())
    metrics = call(app, "/metrics").body.decode()
    num_choices = len(body["prompt"]) * body.get("n", 1)
    assert f'finish_reason="abort",model_name="tiny"}} {num_choices}.0' in metrics
    assert 'pageray_open_requests{model_name="tiny"} 0.0' in metrics


def test_cancelled_handler_closes_the_source(app: Starlette, source: FakeTokenSource) -> None:
    # Ray Serve cancels the handler when the client leaves.
    source.pause_after = 1

    async def run() -> None:
        task = asyncio.create_task(AsgiCall(app, "/v1/completions", BODIES[1]).run())
        await source.paused.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.num_open == 0

    asyncio.run(run())


def test_client_that_leaves_while_it_sends_its_body_is_no_error(
    app: Starlette, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(AsgiCall(app, "/v1/completions", {}).scope, receive, send))
    assert not sent
    assert not caplog.records


@pytest.mark.parametrize("fault", [OSError("gone"), None])
def test_client_that_takes_no_events_is_dropped(
    build_app: BuildApp, source: FakeTokenSource, fault: OSError | None
) -> None:
    app = build_app(send_timeout_s=0.02)

    class DeafCall(AsgiCall):
        async def _send(self, message: Message) -> None:
            if message["type"] == "http.response.body" and self.parts:
                if fault is not None:
                    raise fault
                await asyncio.Event().wait()  # the socket's buffer is full
            await super()._send(message)

    asyncio.run(DeafCall(app, "/v1/completions", {"prompt": "a", "stream": True}).run())
    assert source.num_open == 0
    assert source.num_closed_early == 1
