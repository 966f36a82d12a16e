"""An outbox against a plain list, and the waits of its reader."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.outbox import Outbox

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def take(outbox: Outbox) -> bytes:
    return asyncio.run(outbox.get())


@unhurried
@given(st.lists(st.sampled_from(["put", "send", "acknowledge", "reconnect"]), max_size=60))
def test_peer_gets_every_message_once_and_in_order_through_any_breaks(actions: list[str]) -> None:
    outbox = Outbox()
    put: list[bytes] = []
    received: list[bytes] = []
    on_the_wire: list[bytes] = []
    for action in actions:
        if action == "put":
            put.append(b"%d" % len(put))
            outbox.put(put[-1])
        elif action == "send" and outbox.last_sent < outbox.last_number:
            on_the_wire.append(take(outbox))
        elif action == "acknowledge":
            received += on_the_wire
            on_the_wire.clear()
            outbox.acknowledge(len(received))
        elif action == "reconnect":
            # What was on the wire is lost.
            on_the_wire.clear()
            outbox = outbox.rewound()
        assert outbox.last_number == len(put)
        assert outbox.last_sent == len(received) + len(on_the_wire)
        assert outbox.num_bytes == sum(len(each) for each in put[len(received) :])
    assert received + on_the_wire == put[: outbox.last_sent]


def test_reader_waits_for_the_next_message() -> None:
    async def run() -> None:
        outbox = Outbox()
        reader = asyncio.create_task(outbox.get())
        await asyncio.sleep(0)
        assert not reader.done()
        outbox.put(b"message")
        assert await reader == b"message"

    asyncio.run(run())


def test_messages_come_before_the_heartbeat_that_they_outdate() -> None:
    outbox = Outbox()
    outbox.put_heartbeat(b"old heartbeat")
    outbox.put_heartbeat(b"heartbeat")
    assert take(outbox) == b"heartbeat"
    outbox.put_heartbeat(b"outdated")
    outbox.put(b"message")
    outbox.put_heartbeat(b"late")
    assert take(outbox) == b"message"
    outbox.put(b"another")
    assert take(outbox) == b"another"
    assert outbox.last_sent == 2


def test_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    outbox = Outbox()
    outbox.put(b"message")
    with pytest.raises(ValueError, match="never sent"):
        outbox.acknowledge(1)
