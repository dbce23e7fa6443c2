"""Clock, entropy, the stall meter."""

from __future__ import annotations

import asyncio
import time

from o3storage.runtime import StallMeter, SystemClock, SystemEntropy, new_event_loop


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
