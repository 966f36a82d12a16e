"""Who is let in, who is counted, and who has to go."""

import asyncio

import pytest

from deployments.door import Door
from engine.errors import Overloaded


async def stay(door: Door, leave: asyncio.Event) -> str:
    with door.enter():
        await leave.wait()
        return "served"


def test_whoever_is_inside_is_served_and_nobody_else_comes_in() -> None:
    async def run() -> None:
        door, leave = Door(), asyncio.Event()
        inside = [asyncio.create_task(stay(door, leave)) for _ in range(3)]
        await asyncio.sleep(0)
        assert door.num_inside == 3
        door.close()
        assert not door.is_open
        with pytest.raises(Overloaded, match="stopping"):
            await stay(door, leave)
        leave.set()
        assert await asyncio.gather(*inside) == ["served"] * 3
        assert door.num_inside == 0

    asyncio.run(run())


def test_those_who_have_had_their_time_have_to_go() -> None:
    async def run() -> None:
        door = Door()
        inside = asyncio.create_task(stay(door, asyncio.Event()))
        await asyncio.sleep(0)
        door.close()
        door.turn_out()
        await asyncio.wait({inside})
        assert inside.cancelled()
        assert door.num_inside == 0

    asyncio.run(run())
