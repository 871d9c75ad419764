"""Room for so much at once: never more, in order, and nobody waits for what is free."""

import asyncio

import pytest

from pipelines.serving.room import Room


async def enter(room: Room, amount: int, log: list[str], name: str, leave: asyncio.Event) -> None:
    async with room.of(amount):
        log.append(name)
        await leave.wait()
    log.append(f"-{name}")


def test_the_limit_holds_in_order() -> None:
    async def play() -> list[str]:
        room, log = Room(10), list[str]()
        doors = {name: asyncio.Event() for name in "abcd"}
        amounts = {"a": 6, "b": 4, "c": 7, "d": 1}
        tasks = []
        for name, amount in amounts.items():
            tasks.append(asyncio.create_task(enter(room, amount, log, name, doors[name])))
            await asyncio.sleep(0)
        assert log == ["a", "b"]  # d would fit, but c was first
        doors["b"].set()
        await asyncio.sleep(0.01)
        assert log == ["a", "b", "-b"]
        for door in doors.values():
            door.set()
        await asyncio.gather(*tasks)
        return log

    assert [one for one in asyncio.run(play()) if not one.startswith("-")] == ["a", "b", "c", "d"]


def test_what_is_too_large_comes_in_alone() -> None:
    async def play() -> None:
        room = Room(10)
        async with room.of(1000):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), room.of(1):
                    pass
        async with asyncio.timeout(1), room.of(10):
            pass

    asyncio.run(play())


@pytest.mark.parametrize("let_in_first", [False, True])
def test_who_gives_up_takes_no_room(let_in_first: bool) -> None:
    async def play() -> None:
        room, log, leave = Room(10), list[str](), asyncio.Event()
        first = asyncio.create_task(enter(room, 10, log, "a", leave))
        await asyncio.sleep(0)
        second = asyncio.create_task(enter(room, 10, log, "b", leave))
        await asyncio.sleep(0)
        if let_in_first:
            leave.set()
            await first  # the second is let in, and has not run yet
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        leave.set()
        await first
        async with asyncio.timeout(1), room.of(10):
            pass

    asyncio.run(play())
