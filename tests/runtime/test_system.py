"""Clock, entropy, the stall meter."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import select
import selectors
import socket
import subprocess
import sys
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from o3storage.runtime import (
    StallMeter,
    SystemClock,
    SystemEntropy,
    _stall,
    _tasks,
    after_others,
    busy_share,
    let_others,
    new_event_loop,
    reserve_descriptors,
)
from o3storage.runtime._stall import (
    EVENTS_PER_STEP,
    LEAST_EVENTS,
    LONG_STEP_S,
    MOSTLY_IDLE,
    OLDEST_AFTER,
    OLDEST_AT_LAST,
    YOUNG_OBJECTS,
)


def test_clock() -> None:
    clock = SystemClock()
    assert abs(clock.wall_ns() - time.time_ns()) < 10_000_000_000
    first = clock.boot_s()
    assert clock.boot_s() >= first > 0


def test_entropy() -> None:
    entropy = SystemEntropy()
    assert len(entropy.random_bytes(33)) == 33
    drawn = [entropy.uniform(2, 4) for _ in range(2000)]
    assert all(2 <= value < 4 for value in drawn)
    assert abs(sum(drawn) / len(drawn) - 3) < 0.1  # 8 standard deviations


def test_room_for_descriptors_is_made_beforehand() -> None:
    def room() -> int:
        """Of this process's table, which never shrinks."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("FDSize:")).split()[1])

    before = room()
    wanted = 2 * before
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= wanted
    used = os.listdir("/proc/self/fd")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))
        reserve_descriptors(wanted)  # not allowed
        assert room() == before
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        reserve_descriptors(wanted)
        assert room() >= wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == len(used)


def test_stall_meter() -> None:
    meter = StallMeter(slow_s=0.02)

    def spin(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    async def main() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        spin(0.03)
        await asyncio.sleep(0)
        longest_s = meter.take_longest_s()
        assert longest_s >= 0.03
        assert meter.longest_ever_s == longest_s
        assert meter.longest_s == 0
        assert meter.slow_steps >= 1
        # Waiting is not stalling.
        slow_steps, busy_s = meter.slow_steps, meter.busy_s
        await asyncio.sleep(0.05)
        assert meter.busy_s - busy_s < 0.05 or meter.slow_steps > slow_steps

    with asyncio.Runner(loop_factory=lambda: new_event_loop(meter)) as runner:
        runner.run(main())


def test_the_share_of_time_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from the clock alone: 30 ms of work, then 70 ms of waiting, and so on."""
    now_s = 100.0
    monkeypatch.setattr(_stall, "perf_counter", lambda: now_s)
    meter = StallMeter()
    found = []

    def wait(self: StallMeter, timeout: float | None) -> list[Any]:
        nonlocal now_s
        now_s += timeout or 0.0
        return []

    monkeypatch.setattr(StallMeter, "_select", wait)
    for work_s, idle_s in [(0.03, 0.07)] * 20 + [(0.09, 0.01)] * 20 + [(0.0, 5.0), (0.001, 0.0)]:
        meter.select(idle_s)
        now_s += work_s
        found.append(meter.busy_share)
    meter.close()
    assert found[19] == pytest.approx(0.3, abs=0.05)
    assert found[39] == pytest.approx(0.9, abs=0.05)
    assert found[-1] < 0.05

    async def share() -> float:
        return busy_share()

    assert asyncio.run(share()) == 0.0
    monkeypatch.setattr(_stall, "SHARE_WINDOW_S", float("inf"))
    meter = StallMeter()
    meter.busy_share = 0.7
    with asyncio.Runner(loop_factory=lambda: new_event_loop(meter)) as runner:
        assert runner.run(share()) == 0.7


class _Collector:
    """Stands for the module `gc`."""

    def __init__(self) -> None:
        self.counts = (0, 0, 0)
        self.collected: list[int] = []

    def get_count(self) -> tuple[int, int, int]:
        return self.counts

    def collect(self, generation: int) -> None:
        self.collected.append(generation)


def test_garbage_is_collected_when_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = _Collector()
    monkeypatch.setattr(_stall, "gc", collector)
    meter = StallMeter()
    here, there = socket.socketpair()
    key = meter.register(here, selectors.EVENT_READ)
    try:
        collector.counts = (YOUNG_OBJECTS, 0, 0)
        assert meter.select(0.001) == [] and not collector.collected
        meter.collects = True
        for timeout in (None, 5.0):  # it comes back at once: what is to be done next may be due
            assert meter.select(timeout) == []
        assert collector.collected == [1, 1]
        collector.collected.clear()
        assert meter.select(0) == [], "somebody waits for the loop already"
        there.send(b"x")
        assert meter.select(5.0) == [(key, selectors.EVENT_READ)], "and so does a client"
        here.recv(1)
        collector.counts = (YOUNG_OBJECTS - 1, 1000, 1000)
        assert meter.select(0.001) == []
        assert not collector.collected
        for share, enough in ((0.0, OLDEST_AFTER), (MOSTLY_IDLE, OLDEST_AT_LAST)):
            for collections in (enough - 1, enough):
                collector.counts = (YOUNG_OBJECTS, 1000, collections)
                meter.busy_share = share
                meter.select(5.0)
        assert collector.collected == [1, 2] * 2
    finally:
        meter.close()
        here.close()
        there.close()


def test_the_interpreter_does_not_look_at_what_is_old_in_the_middle_of_requests() -> None:
    """In a process of its own: generations are the whole interpreter's."""
    program = f"""
import gc
from o3storage.server._app import GC_THRESHOLDS
gc.collect()
gc.freeze()
gc.set_threshold(*GC_THRESHOLDS)
seen = []
gc.callbacks.append(lambda phase, found: seen.append(found["generation"]))
keep = []
for _ in range(40):
    keep += [[n] for n in range({YOUNG_OBJECTS})]
    gc.collect(1)
seen.clear()
keep += [[n] for n in range(GC_THRESHOLDS[0] + 100)]
assert seen and 2 not in seen, seen
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_work_that_can_wait_does_until_nobody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(_stall, "perf_counter", lambda: now_s)
    meter = StallMeter()
    here, there = socket.socketpair()
    key = meter.register(here, selectors.EVENT_READ)
    done: list[str] = []

    def put_off(name: str, most_s: float) -> None:
        meter.put_off(lambda: done.append(name), most_s)

    try:
        put_off("listing", 0.006)
        put_off("apply", 0.005)
        put_off("another", 0.006)
        there.send(b"x")
        assert meter.select(None) == [(key, selectors.EVENT_READ)] and not done
        here.recv(1)
        assert meter.select(0) == [] and not done, "callbacks are ready"
        assert meter.select(None) == [] and done == ["apply"], "one, though it may wait longest"
        assert meter.select(5.0) == [] and done == ["apply", "listing"], "the older of the others"
        there.send(b"x")
        now_s += 0.0059
        assert meter.select(0) != [] and len(done) == 2
        now_s += 0.0002
        put_off("late", 0.001)
        assert meter.select(0) != [] and done[2:] == ["another"], "it has waited long enough"
        now_s += 1.0
        assert meter.select(None) != [] and done[3:] == ["late"]
        here.recv(1)
        assert meter.select(0.001) == [], "and then it waits as ever"
    finally:
        meter.close()
        here.close()
        there.close()


@pytest.mark.parametrize("busy", [False, True])
def test_on_a_busy_loop_steps_of_long_work_wait_for_those_who_come(
    monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    monkeypatch.setattr(_stall, "SHARE_WINDOW_S", float("inf"))
    monkeypatch.setattr(_tasks, "STEP_WITHIN_S", 60.0)
    meter = StallMeter()
    meter.busy_share = 0.9 if busy else 0.1
    done: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        left = 3

        def read() -> None:
            nonlocal left
            here.recv(1)
            done.append("read")
            left -= 1
            if left:
                there.send(b"x")

        async def long_work() -> None:
            await after_others()
            done.append("begun")
            await let_others()
            done.append("ended")

        loop.add_reader(here, read)
        there.send(b"x")
        working = loop.create_task(long_work())
        gone = loop.create_task(long_work())
        loop.call_soon(gone.cancel)
        await working
        loop.remove_reader(here)
        here.close()
        there.close()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(meter)) as runner:
        runner.run(main())
    if busy:
        assert done == ["read"] * 3 + ["begun", "ended"]
    else:
        assert done[0] == "begun"


def test_work_that_has_waited_long_enough_ends_while_requests_keep_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_stall, "SHARE_WINDOW_S", float("inf"))
    monkeypatch.setattr(_tasks, "STEP_WITHIN_S", 60.0)
    monkeypatch.setattr(_tasks, "WORK_WITHIN_S", 0.005)
    meter = StallMeter()
    meter.busy_share = 0.9

    async def main() -> None:
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        there.send(b"x")
        loop.add_reader(here, lambda: None)  # (ready in every step)
        for _ in range(2):  # (each piece of work has its own time)
            began_s = time.perf_counter()
            await after_others()
            assert time.perf_counter() - began_s >= 0.005
            for _ in range(100):
                await let_others()
        loop.remove_reader(here)
        here.close()
        there.close()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(meter)) as runner:
        runner.run(asyncio.wait_for(main(), 30))


def test_circles_are_collected_by_an_idle_loop() -> None:
    class Circle:
        def __init__(self) -> None:
            self.itself = self

    async def main() -> None:
        last = weakref.ref(Circle())
        for _ in range(YOUNG_OBJECTS):
            Circle()
        assert last() is not None
        await asyncio.sleep(0.001)
        assert last() is None
        assert gc.get_count()[0] < YOUNG_OBJECTS, "else the loop would do nothing else"

    meter = StallMeter()
    meter.collects = True
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=lambda: new_event_loop(meter)) as runner:
            runner.run(main())
    finally:
        gc.enable()


def test_a_step_serves_a_bounded_number_of_sockets_and_all_in_turn() -> None:
    """However many clients are ready at once, one step of the loop takes on few of them."""
    meter = StallMeter()
    loop = new_event_loop(meter)
    pairs = [socket.socketpair() for _ in range(200)]
    served: list[int] = []
    steps: list[int] = []

    def ready(number: int) -> None:
        served.append(number)  # and what came stays unread: it is ready in the next step as well

    async def main() -> None:
        for number, (here, there) in enumerate(pairs):
            loop.add_reader(here, ready, number)
            there.send(b"x")
        while len(set(served)) < len(pairs):
            before = len(served)
            await asyncio.sleep(0)
            steps.append(len(served) - before)
        for here, _ in pairs:
            loop.remove_reader(here)

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
        for pair in pairs:
            for end in pair:
                end.close()
    assert max(steps) <= EVENTS_PER_STEP
    # In turn: nobody is served a third time before the last one was served once.
    assert max(Counter(served).values()) <= 2


def test_long_steps_are_followed_by_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """More sockets are ready than any step serves; what each costs changes."""
    now_s = 100.0
    monkeypatch.setattr(_stall, "perf_counter", lambda: now_s)
    meter = StallMeter()
    here, there = socket.socketpair()
    meter.register(here, selectors.EVENT_READ)
    sizes: list[int] = []

    def poll(_: float, most: int) -> list[tuple[int, int]]:
        sizes.append(most)
        return [(here.fileno(), select.EPOLLIN)] * most

    monkeypatch.setattr(meter, "_poll", poll)

    def serve(steps: int, cost_s: float, more_s: float = 0.0) -> list[int]:
        nonlocal now_s
        sizes.clear()
        for _ in range(steps):
            now_s += len(meter.select(0)) * cost_s + more_s
        return sizes

    try:
        assert set(serve(20, 0.00015)) == {EVENTS_PER_STEP}, "these take less"
        found = serve(50, 0.0004)
        assert found[0] == EVENTS_PER_STEP
        assert max(found[1:]) * 0.0004 <= LONG_STEP_S + 2 * 0.0004
        assert min(found) * 0.0004 >= LONG_STEP_S - 2 * 0.0004, "and not smaller than needed"
        assert serve(EVENTS_PER_STEP, 0.00015)[-1] == EVENTS_PER_STEP
        assert serve(5, 0.0, more_s=1.0)[1:] == [LEAST_EVENTS] * 4
    finally:
        meter.close()
        here.close()
        there.close()


def test_events_of_both_directions_and_timeouts() -> None:
    meter = StallMeter()
    here, there = socket.socketpair()
    try:
        assert meter.select(0) == []
        key = meter.register(here, selectors.EVENT_READ | selectors.EVENT_WRITE)
        assert meter.select(None) == [(key, selectors.EVENT_WRITE)]
        there.send(b"x")
        assert meter.select(0.1) == [(key, selectors.EVENT_READ | selectors.EVENT_WRITE)]
        key = meter.modify(here, selectors.EVENT_READ)
        assert meter.select(-1) == [(key, selectors.EVENT_READ)]
        here.recv(1)
        assert meter.select(0.001) == []
        there.close()
        assert meter.select(0) == [(key, selectors.EVENT_READ)]
    finally:
        meter.close()
        here.close()
        there.close()
