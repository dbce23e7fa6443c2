"""Time and entropy as interfaces.

Durations and timeouts use the event loop's own clock (`loop.time()`, `asyncio.sleep`), which the
simulator replaces whole. Wall time is only for what people and S3 see, and for proposals; it may
jump.
"""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    def wall_ns(self) -> int:
        """UNIX time in nanoseconds. May jump either way."""
        ...

    def boot_s(self) -> float:
        """Seconds on a clock that never steps back and counts suspend (for leases)."""
        ...


class Entropy(Protocol):
    def random_bytes(self, size: int) -> bytes:
        """Cryptographic random bytes (the hardware's mixed with the system's)."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high) for timeouts; not for keys."""
        ...
