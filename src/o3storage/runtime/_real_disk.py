"""The real disk: every operation that may block is one job of the pool."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TypeVar

from o3storage import _native
from o3storage.runtime._pool import JobPool
from o3storage.runtime.disk import (
    DIRECT_ALIGN_BYTES,
    Buffer,
    DiskError,
    DiskFault,
    DiskFull,
    OpenMode,
    Space,
)
from o3storage.runtime.jobs import Job

T = TypeVar("T")

FILE_MODE = 0o600
DIR_MODE = 0o700

DIRECT_READ_BYTES = 4 * 1024 * 1024
"""Direct reads go through one aligned buffer of this size."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_CALLER = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
"""What a caller may expect and handle; everything else is the disk's fault."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

_FLAGS = {
    OpenMode.READ: os.O_RDONLY,
    OpenMode.WRITE: os.O_RDWR,
    OpenMode.CREATE: os.O_RDWR | os.O_CREAT | os.O_EXCL,
}


def _fault(error: OSError, path: str, doing: str) -> DiskFault:
    return DiskFault(error.errno, f"{doing}: {error.strerror or error}", path)


def _name_error(error: OSError, path: str, doing: str) -> OSError:
    """For operations on names: full and exhausted are no faults of the disk."""
    if isinstance(error, _CALLER):
        return error
    if error.errno in _NO_SPACE:
        return DiskFull(error.errno, f"{doing}: {error.strerror}", path)
    if error.errno in _EXHAUSTED or isinstance(error, PermissionError):
        return DiskError(error.errno, f"{doing}: {error.strerror}", path)
    return _fault(error, path, doing)


class RealFile:
    """A `File` of the operating system."""

    __slots__ = ("_direct", "_handle", "_path", "_pool", "_writer")

    def __init__(
        self,
        pool: JobPool,
        path: str,
        handle: _native.FileHandle,
        direct: _native.FileHandle | None,
    ) -> None:
        self._pool = pool
        self._path = path
        self._handle = handle
        self._direct = direct
        self._writer = handle if direct is None else direct

    def __repr__(self) -> str:
        return f"RealFile({self._path!r})"

    @property
    def path(self) -> str:
        return self._path

    def read_now(self, offset: int, size: int) -> bytes | None:
        """See `File.read_now`."""
        try:
            return _native.pread_nowait(self._handle, size, offset)
        except ValueError:
            if self._handle.closed:
                return None
            raise

    def native_handle(self) -> _native.FileHandle | None:
        """See `File.native_handle`."""
        return None if self._handle.closed else self._handle

    async def read(self, offset: int, size: int) -> bytes:
        """See `File.read`."""
        if self._handle.closed:
            raise DiskError(errno.EBADF, "read: the file is closed", self._path)
        try:
            return await self._pool.submit(_native.pread_job(self._handle, size, offset))
        except OSError as error:
            raise _fault(error, self._path, "read") from error

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `File.write`."""
        await self._write(offset, buffers, sync=False)

    async def write_sync(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `File.write_sync`."""
        await self._write(offset, buffers, sync=True)

    async def _write(self, offset: int, buffers: Sequence[Buffer], *, sync: bool) -> None:
        if self._direct is not None:
            _check_aligned(offset, buffers)
        try:
            await self._pool.submit(_native.pwritev_job(self._writer, buffers, offset, sync))
        except OSError as error:
            raise _fault(error, self._path, "write") from error

    async def sync(self) -> None:
        """See `File.sync`."""
        try:
            await self._pool.submit(_native.fdatasync_job(self._writer))
        except OSError as error:
            raise _fault(error, self._path, "sync") from error

    async def allocate(self, offset: int, size: int, *, zero_fill: bool) -> None:
        """See `File.allocate`."""
        try:
            await self._pool.submit(_native.allocate_job(self._handle, offset, size, zero_fill))
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise DiskFull(error.errno, "allocate: no space left", self._path) from error
            raise _fault(error, self._path, "allocate") from error

    async def truncate(self, size: int) -> None:
        """See `File.truncate`."""
        try:
            await self._pool.submit(_native.truncate_job(self._handle, size))
        except OSError as error:
            raise _fault(error, self._path, "truncate") from error

    async def size(self) -> int:
        """See `File.size`."""
        try:
            return await self._pool.submit(_native.stat_size_job(self._handle))
        except OSError as error:
            raise _fault(error, self._path, "stat") from error

    async def close(self) -> None:
        """See `File.close`. Jobs still running keep the file open until they are done."""
        for handle in (self._direct, self._handle):
            if handle is not None and not handle.closed:
                try:
                    await self._pool.submit(handle.close_job())
                except OSError as error:
                    raise _fault(error, self._path, "close") from error


def _check_aligned(offset: int, buffers: Sequence[Buffer]) -> None:
    if offset % DIRECT_ALIGN_BYTES or any(len(b) % DIRECT_ALIGN_BYTES for b in buffers):
        raise ValueError(
            f"direct writes have offsets and sizes in multiples of {DIRECT_ALIGN_BYTES}"
        )


class RealDisk:
    """A `Disk` below one directory of the operating system."""

    def __init__(self, root_dir: str | os.PathLike[str], pool: JobPool) -> None:
        self._root = os.path.abspath(root_dir)
        self._pool = pool

    def __repr__(self) -> str:
        return f"RealDisk({self._root!r})"

    def _whole(self, path: str) -> str:
        if path in ("", "."):
            return self._root
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"not a path below the root of the disk: {path!r}")
        return f"{self._root}/{path}"

    async def _name(self, job: Job[T], path: str, doing: str) -> T:
        try:
            return await self._pool.submit(job)
        except OSError as error:
            mapped = _name_error(error, path, doing)
            if mapped is error:
                raise
            raise mapped from error

    async def open(self, path: str, mode: OpenMode, *, direct: bool = False) -> RealFile:
        """See `Disk.open`."""
        whole = self._whole(path)
        flags = _FLAGS[mode]
        handle = await self._name(_native.open_job(whole, flags, FILE_MODE), path, "open")
        unbuffered: _native.FileHandle | None = None
        if direct and mode is not OpenMode.READ:
            job = _native.open_job(whole, os.O_RDWR | os.O_DIRECT, FILE_MODE)
            try:
                unbuffered = await self._pool.submit(job)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise _name_error(error, path, "open") from error
                # A file system without O_DIRECT: buffered writes are as durable after a sync.
        return RealFile(self._pool, path, handle, unbuffered)

    async def read_direct(self, path: str, offset: int, size: int) -> bytes:
        """See `Disk.read_direct`."""
        whole = self._whole(path)
        try:
            handle = await self._pool.submit(_native.open_job(whole, os.O_RDONLY | os.O_DIRECT))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise _name_error(error, path, "open") from error
            handle = await self._name(_native.open_job(whole, os.O_RDONLY), path, "open")
        pieces = []
        try:
            while size > 0:
                wanted = min(size, DIRECT_READ_BYTES)
                piece = await self._read_direct(handle, offset, wanted)
                pieces.append(piece)
                if len(piece) < wanted:
                    break
                offset += wanted
                size -= wanted
        except OSError as error:
            raise _fault(error, path, "read") from error
        finally:
            await self._pool.submit(handle.close_job())
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _read_direct(self, handle: _native.FileHandle, offset: int, size: int) -> bytes:
        start = offset - offset % DIRECT_ALIGN_BYTES
        end = -(-(offset + size) // DIRECT_ALIGN_BYTES) * DIRECT_ALIGN_BYTES
        buffer = memoryview(_native.AlignedBuffer(end - start, False))
        got = await self._pool.submit(_native.pread_into_job(handle, buffer, start))
        return bytes(buffer[offset - start : min(got, offset - start + size)])

    async def list_dir(self, path: str) -> list[str]:
        """See `Disk.list_dir`."""
        return await self._name(_native.list_dir_job(self._whole(path)), path, "list")

    async def make_dir(self, path: str) -> None:
        """See `Disk.make_dir`."""
        await self._name(_native.make_dir_job(self._whole(path), DIR_MODE), path, "make directory")

    async def rename(self, source: str, target: str) -> None:
        """See `Disk.rename`."""
        job = _native.rename_job(self._whole(source), self._whole(target))
        await self._name(job, source, "rename")

    async def unlink(self, path: str) -> None:
        """See `Disk.unlink`."""
        await self._name(_native.unlink_job(self._whole(path)), path, "remove")

    async def sync_dir(self, path: str) -> None:
        """See `Disk.sync_dir`. Any failure is a DiskFault: names may be lost."""
        try:
            await self._pool.submit(_native.sync_dir_job(self._whole(path)))
        except _CALLER:
            raise
        except OSError as error:
            raise _fault(error, path, "sync directory") from error

    async def space(self) -> Space:
        """See `Disk.space`."""
        total, free = await self._name(_native.statfs_job(self._root), "", "read free space")
        return Space(total, free)

    def aligned_buffer(self, size: int) -> memoryview:
        """See `Disk.aligned_buffer`; the memory is reused once no view of it is left."""
        return memoryview(_native.AlignedBuffer(size))
