"""The pace of catching up: the line that its floor follows, turns, and what is urgent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from o3storage.cluster import _catch_up_pace as module
from o3storage.cluster._catch_up_pace import LEAST_SHARE, LOOK_S, NEAR_ENTRIES, PER_S, CatchUpPace
from o3storage.simulation import run
from o3storage.storage import MAX_PACE_SHARE


def on_virtual_time(work: Any) -> Any:
    return run(work, 1)


async def lag(pace: CatchUpPace, entries: float, seconds: float, per_s: float) -> float:
    """The member lacks so much less each second, for so long; what it lacks then."""
    for _ in range(int(seconds / LOOK_S)):
        pace.lacks(1, 2, int(entries))
        await asyncio.sleep(LOOK_S)
        entries -= per_s * LOOK_S
    return entries


def test_who_does_not_follow_the_line_gets_more_up_to_the_most() -> None:
    async def main() -> None:
        pace = CatchUpPace()
        assert pace.pace.floor == LEAST_SHARE
        await lag(pace, 100_000, 8.0, PER_S / 2)
        assert pace.pace.floor == MAX_PACE_SHARE
        assert pace.pace.share == MAX_PACE_SHARE

    on_virtual_time(main())


def test_a_lag_that_grows_is_behind_its_line_too() -> None:
    async def main() -> None:
        pace = CatchUpPace()
        await lag(pace, 100_000, 8.0, -100)
        assert pace.pace.floor == MAX_PACE_SHARE

    on_virtual_time(main())


def test_who_is_ahead_of_the_line_leaves_the_loop_to_others() -> None:
    async def main() -> None:
        pace = CatchUpPace()
        left = await lag(pace, 100_000, 8.0, PER_S / 2)
        pace.gone(2)
        await lag(pace, left, 20.0, PER_S * 1.2)
        assert pace.pace.floor == LEAST_SHARE

    on_virtual_time(main())


def test_beside_requests_the_floor_is_the_most_though_none_queues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        share = module.REQUESTS_SHARE
        loop, others = asyncio.get_running_loop(), 1.1
        pace = CatchUpPace()
        monkeypatch.setattr(module, "busy_s", lambda: others * share * loop.time())
        left = await lag(pace, 100_000, 8.0, PER_S * 1.2)
        assert pace.pace.share == pace.pace.ceiling == pace.pace.floor == LEAST_SHARE
        # Nobody else wants the loop: what it does is this.
        pace.pace.worked_s = 0.2 * share * loop.time()
        others = 0.9
        await lag(pace, left, 2.0, PER_S * 1.2)
        assert pace.pace.ceiling == MAX_PACE_SHARE
        assert pace.pace.floor == LEAST_SHARE

    on_virtual_time(main())


def test_own_work_does_not_count_as_that_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pace = CatchUpPace()
        began_s = loop.time()
        monkeypatch.setattr(module, "busy_s", lambda: 0.4 * (loop.time() - began_s))
        for _ in range(4):
            pace.pace.worked_s = 0.3 * (loop.time() - began_s)
            pace.lacks(1, 2, 100_000)
            await asyncio.sleep(LOOK_S)
        assert pace.pace.ceiling == MAX_PACE_SHARE

    on_virtual_time(main())


def test_a_line_ends_with_what_was_missing_and_with_the_member() -> None:
    async def main() -> None:
        pace = CatchUpPace()
        pace.lacks(1, 2, 10_000)
        await asyncio.sleep(60.0)
        pace.lacks(1, 2, NEAR_ENTRIES - 1)
        # Another day: 10,000 more are no reason to hurry.
        pace.lacks(1, 2, 10_000)
        await asyncio.sleep(LOOK_S)
        pace.lacks(1, 2, 10_000 - PER_S)
        assert pace.pace.floor == LEAST_SHARE
        await asyncio.sleep(60.0)
        pace.gone(3)
        pace.lacks(1, 2, 10_000)
        assert pace.pace.floor > LEAST_SHARE
        await asyncio.sleep(60.0)
        pace.gone(2)
        pace.pace.floor = LEAST_SHARE
        pace.lacks(1, 2, 10_000)
        await asyncio.sleep(LOOK_S)
        pace.lacks(1, 2, 10_000 - PER_S)
        assert pace.pace.floor == LEAST_SHARE

    on_virtual_time(main())


def test_lines_are_bounded() -> None:
    async def main() -> None:
        pace = CatchUpPace()
        for group in range(3 * module.MAX_LINES):
            pace.lacks(group, 2, 10_000)
        assert len(pace._lines) == module.MAX_LINES

    on_virtual_time(main())


def test_one_turn_at_a_time_and_in_order() -> None:
    async def main() -> None:
        pace = CatchUpPace()
        order: list[int] = []
        inside = 0

        async def turn(number: int) -> None:
            nonlocal inside
            assert await pace.begin(lambda: False)
            inside += 1
            assert inside == 1
            order.append(number)
            await asyncio.sleep(0.01)
            await pace.rest()
            inside -= 1
            await pace.end()

        await asyncio.gather(*(turn(number) for number in range(10)))
        assert order == list(range(10))
        assert pace.turns == 10

    on_virtual_time(main())


def test_what_is_urgent_waits_for_nobody() -> None:
    async def main() -> None:
        pace = CatchUpPace()
        urgent = False
        assert await pace.begin(lambda: False)
        waiting = asyncio.ensure_future(pace.begin(lambda: urgent))
        other = asyncio.ensure_future(pace.begin(lambda: False))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert await pace.begin(lambda: True) is False
        # It became urgent while it waited: the member that the range had instead is gone.
        urgent = True
        pace.gone(3)
        assert await waiting is False
        await asyncio.sleep(0.01)
        assert not other.done()
        await pace.end()
        assert await other is True

    on_virtual_time(main())


def test_a_turn_that_is_cancelled_lets_the_next_one_begin() -> None:
    async def main() -> None:
        pace = CatchUpPace()

        async def turn() -> None:
            assert await pace.begin(lambda: False)
            try:
                await asyncio.sleep(10.0)
            finally:
                await pace.end()

        first = asyncio.ensure_future(turn())
        await asyncio.sleep(0.01)
        second = asyncio.ensure_future(pace.begin(lambda: False))
        await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second is True

    on_virtual_time(main())


def test_a_turn_that_is_given_to_one_who_is_cancelled_goes_to_the_next() -> None:
    async def main() -> None:
        pace = CatchUpPace()
        assert await pace.begin(lambda: False)
        second = asyncio.ensure_future(pace.begin(lambda: False))
        third = asyncio.ensure_future(pace.begin(lambda: False))
        await asyncio.sleep(0.01)
        pace._busy = False  # as `end` does after its rest
        pace._wake_one()
        second.cancel()
        await asyncio.sleep(0.01)
        assert second.cancelled()
        assert third.done()

    on_virtual_time(main())
