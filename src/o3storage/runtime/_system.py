"""Clock, entropy and descriptors of the machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import time

from o3storage import _native


def raise_descriptor_limit(wanted: int) -> int:
    """Have this process allowed `wanted` open descriptors, or as many as it may be; returns how
    many that is now (getrlimit(2), RLIMIT_NOFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # O3StorageOS has one limit for good
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else soft


def reserve_descriptors(count: int) -> None:
    """Have the kernel make room for `count` descriptors now, rather than whenever their number
    passes a power of two: with threads, the call that opens that descriptor waits there for all
    cores (Linux, fs/file.c, `expand_fdtable`: synchronize_rcu), 8 to 24 ms in our measurements, and
    the event loop with it. Costs 8 bytes of the kernel's for each; does nothing where `count` are
    not allowed."""
    with contextlib.suppress(OSError):
        here = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.close(fcntl.fcntl(here, fcntl.F_DUPFD_CLOEXEC, count - 1))
        finally:
            os.close(here)


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
