"""How the background's share of the loop follows what others need."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from o3storage.simulation import run
from o3storage.storage import _pace
from o3storage.storage._pace import (
    FULL_FLOOR_BYTES,
    LATE_S,
    MAX_SHARE,
    MIN_SHARE,
    PIECE_S,
    Pace,
)


class Loop:
    """The time of a loop whose timers fire `late_s` late, and how long rests were asked for."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.late_s = 0.0
        self.others = 0.0
        """The part of each rest in which it does other work."""
        self.busy_s = 7.0
        self.rests = []

    def time(self):
        return self.now_s

    async def sleep(self, delay_s):
        self.rests.append(delay_s)
        self.now_s += delay_s + self.late_s
        self.busy_s += self.others * (delay_s + self.late_s)


@pytest.fixture
def loop(monkeypatch):
    found = Loop()
    double = SimpleNamespace(sleep=found.sleep, get_running_loop=lambda: found)
    monkeypatch.setattr(_pace, "asyncio", double)
    monkeypatch.setattr(_pace, "busy_s", lambda: found.busy_s)
    return found


async def work(pace, loop, pieces, seconds=PIECE_S):
    pace.begin()
    for _ in range(pieces):
        loop.now_s += seconds
        loop.busy_s += seconds
        await pace.rest()


def test_an_idle_loop_gives_the_largest_share(loop):
    pace = Pace()
    asyncio.run(work(pace, loop, 10))
    assert pace.share == MAX_SHARE
    assert loop.rests == [pytest.approx(PIECE_S * (1 / MAX_SHARE - 1))] * 10
    assert pace.worked_s == pytest.approx(10 * PIECE_S)


def test_late_timers_shrink_the_share_to_its_floor_and_no_further(loop):
    pace = Pace()
    loop.late_s = 2 * LATE_S
    asyncio.run(work(pace, loop, 1))
    assert pace.share == MAX_SHARE / 2
    asyncio.run(work(pace, loop, 20))
    assert pace.share == MIN_SHARE
    assert loop.rests[-1] == pytest.approx(PIECE_S * (1 / MIN_SHARE - 1))
    loop.late_s = LATE_S / 2
    asyncio.run(work(pace, loop, 30))
    assert pace.share == MAX_SHARE


def test_it_leaves_half_of_what_others_leave(loop):
    """Though no timer is late."""
    pace = Pace()
    loop.others = 0.85
    asyncio.run(work(pace, loop, 300))
    began_s, worked_s, busy_s = loop.now_s, pace.worked_s, loop.busy_s
    asyncio.run(work(pace, loop, 300))
    share = (pace.worked_s - worked_s) / (loop.now_s - began_s)
    others = (loop.busy_s - busy_s) / (loop.now_s - began_s) - share
    assert share == pytest.approx((1 - others) / 2, rel=0.05)
    assert 0.1 < share < MAX_SHARE / 2
    loop.others = 1.0
    asyncio.run(work(pace, loop, 100))
    assert pace.share == MIN_SHARE
    loop.others = 0.1
    asyncio.run(work(pace, loop, 100))
    assert pace.share == MAX_SHARE


def test_the_floor_rises_with_what_waits(loop):
    pace = Pace()
    loop.late_s = 2 * LATE_S
    shares = []
    for waiting in (0, FULL_FLOOR_BYTES // 2, FULL_FLOOR_BYTES, 10 * FULL_FLOOR_BYTES):
        pace.ask(waiting)
        asyncio.run(work(pace, loop, 20))
        shares.append(pace.share)
    half = (MIN_SHARE + MAX_SHARE) / 2
    assert shares == pytest.approx([MIN_SHARE, half, MAX_SHARE, MAX_SHARE])
    pace.ask(0)
    asyncio.run(work(pace, loop, 20))
    assert pace.share == MIN_SHARE
    pace.ask(0, urgent=True)
    assert pace.share == pytest.approx(MAX_SHARE), "at once: space is short"


def test_what_a_piece_waited_for_the_disk_is_not_its_own_work(loop):
    pace = Pace()
    asyncio.run(work(pace, loop, 1, seconds=1.0))
    assert loop.rests[0] <= 2 * PIECE_S * (1 / MAX_SHARE - 1)


def test_what_rests_took_too_long_is_made_up_for(loop):
    """With pieces so short that every rest lasts longer than it was to last."""
    pace = Pace(PIECE_S / 4, makes_up=True)
    loop.late_s = PIECE_S / 3
    asyncio.run(work(pace, loop, 100, seconds=PIECE_S / 4))
    elapsed_s = loop.now_s - 100.0
    assert pace.worked_s / elapsed_s == pytest.approx(MAX_SHARE, rel=0.02)
    assert min(loop.rests) >= 0
    loop.late_s = 10 * PIECE_S
    asyncio.run(work(pace, loop, 1, seconds=PIECE_S / 4))
    asyncio.run(work(pace, loop, 1, seconds=PIECE_S / 4))
    assert loop.rests[-1] == 0.0, "no rest is shorter than none"


def test_the_rate_in_bytes_holds_under_virtual_time():
    async def main():
        pace = Pace()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        pace.begin()
        for _ in range(10):
            assert not pace.is_long()
            await pace.rest(0.5)
        return loop.time() - began_s

    assert run(main(), 1) == pytest.approx(5.0, abs=0.1)
