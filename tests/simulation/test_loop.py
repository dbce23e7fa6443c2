from __future__ import annotations

import asyncio
import time

import pytest

from o3storage.simulation import (
    SimClock,
    SimDeadlockError,
    SimEntropy,
    SimJobs,
    SimLoop,
    SimTimeoutError,
    run,
)


def test_time_jumps_to_the_next_timer():
    async def main() -> float:
        await asyncio.sleep(86_400 * 3)
        return asyncio.get_running_loop().time()

    before = time.monotonic()
    assert run(main(), 1) >= 86_400 * 3
    assert time.monotonic() - before < 5


def test_timers_fire_in_order_of_time():
    seen: list[int] = []

    async def sleeper(n: int) -> None:
        await asyncio.sleep(n)
        seen.append(n)

    async def main() -> None:
        await asyncio.gather(*(sleeper(n) for n in (5, 1, 4, 2, 3)))

    run(main(), 1)
    assert seen == [1, 2, 3, 4, 5]


def test_deadlock_is_reported_with_who_waits():
    async def waits_forever() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(waits_forever())
        await task

    with pytest.raises(SimDeadlockError, match="waits_forever"):
        run(main(), 1)


def test_time_limit():
    async def main() -> None:
        while True:
            await asyncio.sleep(10)

    with pytest.raises(SimTimeoutError):
        run(main(), 1, limit_s=1000)


def test_left_over_tasks_are_cancelled_in_order_of_creation():
    seen: list[int] = []

    async def leftover(n: int) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            seen.append(n)

    async def main() -> None:
        tasks = [asyncio.get_running_loop().create_task(leftover(n)) for n in range(20)]
        await asyncio.sleep(1)
        assert len(tasks) == 20

    run(main(), 1)
    assert seen == list(range(20))


def test_rng_is_apart_for_each_name_and_equal_for_each_seed():
    def draw(seed: int, name: str) -> float:
        loop = SimLoop(seed)
        try:
            return loop.rng(name).random()
        finally:
            loop.close()

    assert draw(1, "a") == draw(1, "a")
    assert len({draw(1, "a"), draw(1, "b"), draw(2, "a")}) == 3


def test_executors_and_name_lookup_are_refused():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError):
            loop.run_in_executor(None, print)
        with pytest.raises(RuntimeError):
            await loop.getaddrinfo("example.org", 80)

    run(main(), 1)


class Square:
    def __init__(self, n: int) -> None:
        self.n = n

    def run(self) -> int:
        if self.n < 0:
            raise ValueError("negative")
        return self.n * self.n


@pytest.mark.parametrize("virtual", [True, False])
def test_jobs_run_and_carry_errors(virtual: bool):
    async def main() -> None:
        jobs = SimJobs(3)
        assert await asyncio.gather(*(jobs.run(Square(n)) for n in range(5))) == [0, 1, 4, 9, 16]
        with pytest.raises(ValueError):
            await jobs.run(Square(-1))
        assert jobs.completed == 6

    run(main(), 1) if virtual else asyncio.run(main())


def test_jobs_complete_in_a_seeded_order():
    def order(seed: int) -> list[int]:
        seen: list[int] = []

        async def main() -> None:
            jobs = SimJobs(seed)

            async def one(n: int) -> None:
                await jobs.run(Square(n))
                seen.append(n)

            await asyncio.gather(*(one(n) for n in range(8)))

        run(main(), seed)
        return seen

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_clock_skew_jump_drift_and_suspend():
    async def main() -> None:
        clock, skewed = SimClock(), SimClock(skew_ns=5_000_000_000, drift=0.5)
        assert skewed.wall_ns() - clock.wall_ns() == 5_000_000_000
        start, boot = clock.wall_ns(), clock.boot_s()
        await asyncio.sleep(10)
        assert clock.wall_ns() - start == 10_000_000_000
        assert skewed.boot_s() == pytest.approx(15)
        clock.jump(-3_000_000_000)
        assert clock.wall_ns() - start == 7_000_000_000
        assert clock.boot_s() - boot == pytest.approx(10)
        clock.suspend(100)
        assert clock.boot_s() - boot == pytest.approx(110)

    run(main(), 1)


def test_entropy_is_seeded():
    assert SimEntropy(1).random_bytes(32) == SimEntropy(1).random_bytes(32)
    assert SimEntropy(1).random_bytes(32) != SimEntropy(2).random_bytes(32)
    draws = [SimEntropy(n).uniform(2.0, 3.0) for n in range(50)]
    assert all(2.0 <= x < 3.0 for x in draws)
