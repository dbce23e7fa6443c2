"""Clock and entropy of the machine."""

from __future__ import annotations

import time

from o3storage import _native


class SystemClock:
    """`Clock` of the operating system."""

    __slots__ = ()

    def wall_ns(self) -> int:
        """See `Clock.wall_ns`."""
        return time.time_ns()

    def boot_s(self) -> float:
        """See `Clock.boot_s` (CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class SystemEntropy:
    """`Entropy` of the hardware mixed with the system's."""

    __slots__ = ()

    def random_bytes(self, size: int) -> bytes:
        """See `Entropy.random_bytes`."""
        return _native.random_bytes(size)

    def uniform(self, low: float, high: float) -> float:
        """See `Entropy.uniform`."""
        fraction = (int.from_bytes(_native.random_bytes(7), "little") >> 3) * 2.0**-53
        return low + (high - low) * fraction
