"""Simulated time and entropy: everything follows the running loop's clock and a seed."""

from __future__ import annotations

import asyncio
import random

START_WALL_NS = 1_767_225_600 * 1_000_000_000
"""2026-01-01T00:00:00Z: where simulated wall time starts."""


class SimClock:
    """A node's clock: the loop's time plus skew and drift, and jumps of wall time on demand."""

    def __init__(
        self,
        *,
        start_wall_ns: int = START_WALL_NS,
        skew_ns: int = 0,
        drift: float = 0.0,
    ) -> None:
        """`drift` is the relative error of the node's oscillator: 1e-4 gains 0.1 ms a second."""
        self._offset_ns = start_wall_ns + skew_ns
        self._rate = 1.0 + drift
        self._suspended_s = 0.0

    def wall_ns(self) -> int:
        return self._offset_ns + int(asyncio.get_running_loop().time() * self._rate * 1e9)

    def boot_s(self) -> float:
        return asyncio.get_running_loop().time() * self._rate + self._suspended_s

    def jump(self, delta_ns: int) -> None:
        """Wall time steps by `delta_ns` (either way); `boot_s` does not."""
        self._offset_ns += delta_ns

    def suspend(self, seconds: float) -> None:
        """The machine slept: both clocks move on at once, timers of the loop do not."""
        if seconds < 0:
            raise ValueError("suspend takes a duration in seconds, 0 or more")
        self._suspended_s += seconds
        self._offset_ns += int(seconds * 1e9)


class SimEntropy:
    """Seeded randomness in the place of the hardware's. Never use it for real keys."""

    def __init__(self, seed: int | str) -> None:
        self._rng = random.Random(f"{seed}/entropy")

    def random_bytes(self, size: int) -> bytes:
        return self._rng.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._rng.random()
