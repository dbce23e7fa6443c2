"""/health needs no key: what it costs does not grow with how often it is asked."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.server._health import FRESH_S, ObjectCount
from o3storage.simulation import run


def test_the_ranges_are_asked_once_for_all_who_ask_within_a_second() -> None:
    async def main() -> None:
        asked = 0
        answers: list[int | None] = [None, 7, 8]

        async def count() -> int | None:
            nonlocal asked
            asked += 1
            await asyncio.sleep(5)
            return answers[asked - 1]

        counted = ObjectCount(count)
        # Also if it cannot be said: they do not wait for one try after the other.
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert await asyncio.gather(*(counted.now() for _ in range(100))) == [None] * 100
        assert asked == 1 and loop.time() - began_s < 6
        await asyncio.sleep(FRESH_S)
        assert await asyncio.gather(*(counted.now() for _ in range(100))) == [7] * 100
        assert await counted.now() == 7 and asked == 2
        await asyncio.sleep(FRESH_S)
        assert await counted.now() == 8 and asked == 3

    run(main(), 1)


def test_who_goes_away_while_the_ranges_are_asked_leaves_the_question_to_the_next() -> None:
    async def main() -> None:
        async def count() -> int | None:
            await asyncio.sleep(1)
            return 3

        counted = ObjectCount(count)
        first = asyncio.ensure_future(counted.now())
        second = asyncio.ensure_future(counted.now())
        await asyncio.sleep(0.5)
        first.cancel()
        assert await second == 3
        with pytest.raises(asyncio.CancelledError):
            await first

    run(main(), 2)
