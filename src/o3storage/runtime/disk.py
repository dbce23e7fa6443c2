"""The disk as an interface: the real one runs on the job pool, the simulated one on virtual time.

A `Disk` is one directory tree on one device. Paths are relative to its root, with `/` between
parts. All methods that may block are coroutines; a coroutine that is cancelled neither ends the
job under it nor frees its buffers (the job keeps its own references until it completes).

Durability follows POSIX, read strictly: bytes written are durable only after `File.sync` of that
file returned, and a created, renamed or removed name only after `Disk.sync_dir` of its directory
returned. After `sync` raised, nothing that was written since the previous successful `sync` may be
counted on, and the caller must take the disk out of service (design promise P6): it never retries.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from o3storage._native import FileHandle

Buffer = bytes | bytearray | memoryview

DIRECT_ALIGN_BYTES = 4096
"""Offsets, sizes and buffer addresses of direct I/O are multiples of this (the largest common
logical block size)."""


class DiskError(OSError):
    """An operation failed for a reason that is not the caller's fault; see the subclasses."""


class DiskFull(DiskError):
    """No space: from `allocate` (fallocate or zero-fill). The disk is healthy."""


class DiskFault(DiskError):
    """An I/O error. A write or sync that raised this takes the disk out of service."""


class OpenMode(enum.Enum):
    READ = "read"
    """Existing file, read only."""
    WRITE = "write"
    """Existing file, read and write."""
    CREATE = "create"
    """New file, read and write; FileExistsError if the name exists."""


@dataclass(frozen=True, slots=True)
class Space:
    """Space of the file system that holds the disk, in bytes."""

    total_bytes: int
    free_bytes: int


class File(Protocol):
    """An open file."""

    @property
    def path(self) -> str: ...

    def read_now(self, offset: int, size: int) -> bytes | None:
        """`size` bytes (fewer at end of file) if the page cache has them all now, else None, also
        of a file that is closed. Never blocks (preadv2 with RWF_NOWAIT)."""
        ...

    def native_handle(self) -> FileHandle | None:
        """For native jobs that read from the page cache; None if there is nothing of the kind."""
        ...

    async def read(self, offset: int, size: int) -> bytes:
        """`size` bytes, fewer only at end of file. Raises DiskFault; another DiskError if the file
        is closed, as a store's are that ends while it is read."""
        ...

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """All buffers, one after the other, from `offset`. Raises DiskFault (also for ENOSPC: space
        is reserved by `allocate`, so running out here is a fault). Not durable before `sync`."""
        ...

    async def write_sync(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """`write`, then `sync`, as one job."""
        ...

    async def sync(self) -> None:
        """fdatasync. Raises DiskFault, after which the disk must not be used for writing."""
        ...

    async def allocate(self, offset: int, size: int, *, zero_fill: bool) -> None:
        """Reserve space (fallocate), extending the size; with `zero_fill` also write zeros, so that
        later overwrites need no metadata at sync. Raises DiskFull, DiskFault."""
        ...

    async def truncate(self, size: int) -> None:
        """Cut or extend to `size` bytes."""
        ...

    async def size(self) -> int: ...

    async def close(self) -> None:
        """Idempotent. Does not sync."""
        ...


class Disk(Protocol):
    """One directory tree on one device."""

    async def open(self, path: str, mode: OpenMode, *, direct: bool = False) -> File:
        """`direct` asks for O_DIRECT writes (offset, size and address aligned to
        DIRECT_ALIGN_BYTES); a file system without it falls back to buffered writes. Reads of a
        direct file need no alignment (they go through the page cache unless `read_direct`)."""
        ...

    async def read_direct(self, path: str, offset: int, size: int) -> bytes:
        """Read from the medium, past the page cache (O_DIRECT), aligned inside as needed."""
        ...

    async def list_dir(self, path: str) -> list[str]:
        """Sorted names. FileNotFoundError if there is no such directory."""
        ...

    async def make_dir(self, path: str) -> None:
        """With parents; no error if it exists. Durable after `sync_dir` of each parent."""
        ...

    async def rename(self, source: str, target: str) -> None:
        """Replaces `target` atomically."""
        ...

    async def unlink(self, path: str) -> None: ...

    async def sync_dir(self, path: str) -> None: ...

    async def space(self) -> Space: ...

    def aligned_buffer(self, size: int) -> memoryview:
        """A writable buffer whose address is aligned for direct I/O, zero-filled."""
        ...


async def write_whole(disk: Disk, name: str, data: bytes) -> None:
    """A new file `name` with `data`, its bytes durable on return, its name not (`rename` and
    `sync_dir` are the caller's). One that a crash left is written anew. Raises DiskError."""
    try:
        file = await disk.open(name, OpenMode.CREATE)
    except FileExistsError:
        await disk.unlink(name)
        file = await disk.open(name, OpenMode.CREATE)
    try:
        await file.allocate(0, len(data), zero_fill=False)
        await file.write_sync(0, [data])
    finally:
        await file.close()
