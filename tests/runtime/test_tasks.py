"""Groups of tasks: ends, errors, cancellations, order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from o3storage import simulation
from o3storage.runtime import Tasks, wait_any


def both_loops(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await body()

    asyncio.run(main())
    simulation.run(main(), 1)


def test_the_end_waits_for_all() -> None:
    async def body() -> None:
        done = []

        async def work(number: int) -> int:
            await asyncio.sleep(0.001 * (5 - number))
            done.append(number)
            return number

        async with Tasks() as tasks:
            spawned = [tasks.spawn(work(number)) for number in range(5)]
            assert len(tasks) == 5
        assert sorted(done) == list(range(5))
        assert [task.result() for task in spawned] == list(range(5))
        with pytest.raises(RuntimeError, match="closing"):
            group = Tasks()
            await group.close()
            group.spawn(work(1))

    both_loops(body)


def test_the_first_error_cancels_the_others_in_order_and_is_raised() -> None:
    async def body() -> None:
        cancelled = []

        async def wait(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(number)

        async def fail() -> None:
            await asyncio.sleep(0)
            raise KeyError("first")

        with pytest.raises(KeyError, match="first"):
            async with Tasks() as tasks:
                for number in range(3):
                    tasks.spawn(wait(number))
                tasks.spawn(fail())
                await asyncio.Event().wait()
        assert cancelled == [0, 1, 2]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0, "our own cancellation does not stay on the owner"
        await asyncio.sleep(0)

    both_loops(body)


def test_an_error_while_the_end_waits() -> None:
    async def body() -> None:
        async def fail() -> None:
            await asyncio.sleep(0.001)
            raise KeyError("late")

        with pytest.raises(KeyError, match="late"):
            async with Tasks() as tasks:
                tasks.spawn(fail())
                tasks.spawn(asyncio.Event().wait())

    both_loops(body)


def test_an_error_of_the_body_goes_first() -> None:
    async def body() -> None:
        ended = []

        async def wait() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(1)
                raise ValueError("lost")

        with pytest.raises(KeyError, match="body"):
            async with Tasks() as tasks:
                tasks.spawn(wait())
                await asyncio.sleep(0)
                raise KeyError("body")
        assert ended == [1]

    both_loops(body)


def test_cancelling_the_owner_ends_all() -> None:
    async def body() -> None:
        ended = []

        async def wait(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(number)

        async def own(inside: bool) -> None:
            async with Tasks() as tasks:
                tasks.spawn(wait(1))
                tasks.spawn(wait(2))
                if inside:
                    await asyncio.Event().wait()

        for inside in (True, False):
            ended.clear()
            owner = asyncio.get_running_loop().create_task(own(inside))
            await asyncio.sleep(0.001)
            owner.cancel()
            with pytest.raises(asyncio.CancelledError):
                await owner
            assert ended == [1, 2]

    both_loops(body)


def test_long_lived_group() -> None:
    async def body() -> None:
        errors: list[BaseException] = []
        group = Tasks(on_error=errors.append)

        async def fail(number: int) -> None:
            raise KeyError(number)

        waiting = group.spawn(asyncio.Event().wait())
        for number in range(3):
            group.spawn(fail(number))
        await asyncio.sleep(0.001)
        assert [error.args[0] for error in errors] == [0, 1, 2]
        assert len(group) == 1
        assert not waiting.done()
        await group.close()
        assert waiting.cancelled()
        assert len(group) == 0
        await group.close()

    both_loops(body)


def test_wait_any() -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(3)]
        loop.call_later(0.001, futures[1].set_result, None)
        await wait_any(futures)
        assert [future.done() for future in futures] == [False, True, False]
        await wait_any(futures)
        await wait_any([])
        waiter = loop.create_task(wait_any(futures[:1]))
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert not futures[0].done()

    both_loops(body)
