"""The data directory before anything is opened in it: made, locked, its keys unwrapped.

Order matters (DESIGN section 4, Sealing): lock, unwrap node.keys, and only then the first write.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from o3storage.crypto import KeyFault, MasterKey, OpenedKeys, open_keys
from o3storage.runtime import Entropy, JobPool, RealDisk
from o3storage.storage import DataDirLock, StoreLocked

from ._errors import StartError

LOCK_FILE = "lock"
DIRECTORY_MODE = 0o700
LOST_AND_FOUND = "lost+found"
"""Of the file system, where a whole one is the data directory; only root may look into it."""


@dataclass(slots=True)
class DataDir:
    """A locked data directory with its keys at hand. `release` gives the lock back."""

    path: Path
    disk: RealDisk
    keys: OpenedKeys
    lock: DataDirLock

    def release(self) -> None:
        """Idempotent."""
        self.lock.release()


async def open_data_dir(
    path: Path, pool: JobPool, entropy: Entropy, master: MasterKey | None, *, create: bool
) -> DataDir:
    """Lock `path` and open its keys; with `create`, make a new store where there is none.

    Raises StartError with one line that says what to do; nothing was written then.
    """
    if create:
        _make(path)
    elif not path.is_dir():
        raise StartError(f"there is no store in {path}; name its directory with --data-dir")
    lock = _lock(path)
    try:
        try:
            names = {entry.name for entry in os.scandir(path)} - {LOCK_FILE, LOST_AND_FOUND}
            has_data = any(
                (path / name).is_dir() and any((path / name).iterdir()) for name in names
            )
        except OSError as error:
            raise StartError(f"cannot read {error.filename}: {error.strerror}") from None
        if not create and not names:
            raise StartError(f"there is no store in {path}; name its directory with --data-dir")
        disk = RealDisk(path, pool)
        try:
            keys = await open_keys(disk, entropy=entropy, has_data=has_data, master=master)
        except KeyFault as error:
            raise StartError(f"{path}: {error}") from None
        except OSError as error:
            raise StartError(f"cannot use {path}: {error.strerror or error}") from None
        return DataDir(path, disk, keys, lock)
    except BaseException:
        lock.release()
        raise


def _make(path: Path) -> None:
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StartError(f"--data-dir {path}: a file stands there, not a directory") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartError(f"cannot make the data directory {path}: {reason}") from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StartError(
            f"cannot write in the data directory {path}; give it to this user, or name another "
            "with --data-dir"
        )


def _lock(path: Path) -> DataDirLock:
    try:
        return DataDirLock.acquire(str(path))
    except StoreLocked as error:
        raise StartError(f"{error} (--data-dir)") from None
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise StartError(
                f"cannot write in the data directory {path}; give it to this user, or name "
                "another with --data-dir"
            ) from None
        raise StartError(f"cannot lock {path}: {error.strerror or error}") from None
