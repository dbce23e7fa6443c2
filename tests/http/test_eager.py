"""Several waits before there is a task; one wait and none: `test_server.py`."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.http._eager import MAX_WAITS, Started, start
from tests.http.serving import run


class Waiting:
    """A coroutine that waits for `count` futures, one after the other."""

    def __init__(self, count: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.futures: list[asyncio.Future[int]] = [self.loop.create_future() for _ in range(count)]
        self.seen: list[object] = []
        self.current: list[object] = []
        self.ended: asyncio.Future[BaseException | None] = self.loop.create_future()

    async def run(self) -> None:
        try:
            for future in self.futures:
                self.seen.append(await future)
                self.current.append(asyncio.current_task())
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise

    async def begin(self) -> Started:
        begun: list[Started] = []

        def call() -> None:
            started = start(self.loop, self.run())
            assert started is not None
            started.when_ended(lambda it: self.ended.set_result(it.error))
            begun.append(started)

        self.loop.call_soon(call)
        await asyncio.sleep(0)
        return begun[0]

    async def resolve(self, count: int) -> None:
        for number in range(count):
            self.futures[number].set_result(number)
            for _ in range(4):  # (a task takes some turns)
                await asyncio.sleep(0)


def test_a_few_waits_make_no_task() -> None:
    async def main() -> None:
        waiting = Waiting(MAX_WAITS)
        started = await waiting.begin()
        await waiting.resolve(MAX_WAITS)
        assert await waiting.ended is None
        assert waiting.seen == list(range(MAX_WAITS))
        assert waiting.current == [started] * MAX_WAITS
        assert started.task is None

    run(main())


def test_one_more_makes_one() -> None:
    async def main() -> None:
        waiting = Waiting(MAX_WAITS + 3)
        started = await waiting.begin()
        await waiting.resolve(MAX_WAITS)
        assert started.task is not None
        for number in range(MAX_WAITS, MAX_WAITS + 3):
            waiting.futures[number].set_result(number)
        assert await waiting.ended is None
        assert waiting.seen == list(range(MAX_WAITS + 3))
        assert waiting.current[-1] is started.task

    run(main())


@pytest.mark.parametrize("waits", range(MAX_WAITS + 2))
@pytest.mark.parametrize("resolved", [False, True])
def test_cancelled_in_each_of_its_waits(waits: int, resolved: bool) -> None:
    async def main() -> None:
        waiting = Waiting(MAX_WAITS + 3)
        started = await waiting.begin()
        await waiting.resolve(waits)
        if resolved:
            waiting.futures[waits].set_result(waits)  # its callback has not run yet
        started.cancel()
        assert isinstance(await waiting.ended, asyncio.CancelledError)
        assert waiting.seen == [*range(waits), "cancelled"]
        assert started.done()

    run(main())
