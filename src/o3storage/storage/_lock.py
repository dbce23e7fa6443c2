"""The data directory's lock: one process per disk. Taken before keys are unwrapped (DESIGN 4).

Interface: `DataDirLock.acquire`, `release`.
"""

from __future__ import annotations

import os

from o3storage import _native
from o3storage.storage._types import StoreLocked

LOCK_FILE = "lock"


class DataDirLock:
    """Holds `lock` in the data directory (flock: it ends with the process); the file holds the
    pid."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, data_dir: str) -> DataDirLock:
        """Raises StoreLocked with the holder's pid, OSError if the directory is not writable."""
        descriptor, holder = _native.lock_file(os.path.join(data_dir, LOCK_FILE))
        if descriptor < 0:
            who = f"process {holder}" if holder else "another process"
            raise StoreLocked(f"{data_dir} is in use by {who}: stop it, or use another directory")
        return cls(descriptor)

    def release(self) -> None:
        """Idempotent. The file stays: another process may be about to lock it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
