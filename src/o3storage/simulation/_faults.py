"""Faults of a simulated disk that a test orders: which operation, on which files, how often."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class FaultKind(enum.Enum):
    ERROR = "error"
    """The operation fails with DiskFault. A failed write may have written some sectors; a failed
    sync loses everything it should have written, though the cache still shows it."""
    SLOW = "slow"
    """The operation takes `delay_s` longer."""
    STUCK = "stuck"
    """The operation does not end before `SimDisk.release_stuck`."""
    MISDIRECTED = "misdirected"
    """A write goes, without an error, to other sectors of the same file."""


@dataclass(slots=True)
class Fault:
    """`operation` is one of read, write, sync, sync_dir, allocate, truncate, open, rename, unlink.
    It spares the first `after` operations on paths that start with `path_prefix`, then strikes
    `count` times. Writes below `from_offset` are spared, and not hit by one that goes astray."""

    operation: str
    kind: FaultKind = FaultKind.ERROR
    path_prefix: str = ""
    after: int = 0
    count: int = 1
    delay_s: float = 0.0
    from_offset: int = 0
    struck_path: str = ""
    """Of the last operation that it struck."""

    def strikes(self, operation: str, path: str, offset: int = 0) -> bool:
        if offset < self.from_offset:
            return False
        if operation != self.operation or self.count <= 0 or not path.startswith(self.path_prefix):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.count -= 1
        self.struck_path = path
        return True


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Virtual time that operations take: a fixed part (times a seeded 0.5 to 1.5) and a part by
    size. Measured on an ext4 NVMe volume, rounded."""

    read_s: float = 60e-6
    write_s: float = 20e-6
    sync_s: float = 120e-6
    name_s: float = 20e-6
    bytes_per_s: float = 2e9

    def of(self, operation: str, size: int) -> float:
        fixed = {"read": self.read_s, "write": self.write_s, "sync": self.sync_s}
        if operation == "sync_dir":
            return self.sync_s
        return fixed.get(operation, self.name_s) + size / self.bytes_per_s
