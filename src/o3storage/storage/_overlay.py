"""A disk that can be looked at and not changed: what is written stays in memory.

For offline tools: opening an index tidies up its directory (a new manifest, old files removed);
over this it does so in memory. Only small files are ever written through it.

Interface: `OverlayDisk`.
"""

from __future__ import annotations

from collections.abc import Sequence

from o3storage.runtime.disk import Buffer, Disk, File, OpenMode, Space


class _MemoryFile:
    """A file that was made after the overlay."""

    def __init__(self, path: str, content: bytearray) -> None:
        self._path = path
        self._content = content

    @property
    def path(self) -> str:
        return self._path

    def read_now(self, offset: int, size: int) -> bytes | None:
        return bytes(self._content[offset : offset + size])

    def native_handle(self) -> None:
        return None

    async def read(self, offset: int, size: int) -> bytes:
        return bytes(self._content[offset : offset + size])

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        end = offset + len(data)
        if len(self._content) < end:
            self._content.extend(bytes(end - len(self._content)))
        self._content[offset:end] = data

    async def write_sync(self, offset: int, buffers: Sequence[Buffer]) -> None:
        await self.write(offset, buffers)

    async def sync(self) -> None:
        pass

    async def allocate(self, offset: int, size: int, *, zero_fill: bool) -> None:
        del zero_fill
        if len(self._content) < offset + size:
            self._content.extend(bytes(offset + size - len(self._content)))

    async def truncate(self, size: int) -> None:
        del self._content[size:]
        self._content.extend(bytes(size - len(self._content)))

    async def size(self) -> int:
        return len(self._content)

    async def close(self) -> None:
        pass


class OverlayDisk:
    """`Disk` over another one, which is only read."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._made: dict[str, bytearray] = {}
        self._gone: set[str] = set()

    async def open(self, path: str, mode: OpenMode, *, direct: bool = False) -> File:
        del direct
        if path in self._made and mode is not OpenMode.CREATE:
            return _MemoryFile(path, self._made[path])
        if mode is OpenMode.READ:
            if path in self._gone:
                raise FileNotFoundError(path)
            return await self._disk.open(path, OpenMode.READ)
        if mode is OpenMode.WRITE:
            file = await self._disk.open(path, OpenMode.READ)
            try:
                self._made[path] = bytearray(await file.read(0, await file.size()))
            finally:
                await file.close()
        else:
            directory, _, name = path.rpartition("/")
            if name in await self.list_dir(directory):
                raise FileExistsError(path)
            self._made[path] = bytearray()
        return _MemoryFile(path, self._made[path])

    async def read_direct(self, path: str, offset: int, size: int) -> bytes:
        if path in self._made:
            return bytes(self._made[path][offset : offset + size])
        if path in self._gone:
            raise FileNotFoundError(path)
        return await self._disk.read_direct(path, offset, size)

    async def list_dir(self, path: str) -> list[str]:
        head = f"{path}/" if path else ""
        made = {
            name[len(head) :]
            for name in self._made
            if name.startswith(head) and "/" not in name[len(head) :]
        }
        try:
            names = set(await self._disk.list_dir(path))
        except FileNotFoundError:
            if not made:
                raise
            names = set()
        return sorted(made | {name for name in names if head + name not in self._gone})

    async def make_dir(self, path: str) -> None:
        """Files in it may be made at once; it shows when there is one."""

    async def rename(self, source: str, target: str) -> None:
        if source not in self._made:
            file = await self.open(source, OpenMode.WRITE)
            await file.close()
        self._made[target] = self._made.pop(source)
        self._gone.add(source)
        self._gone.discard(target)

    async def unlink(self, path: str) -> None:
        if self._made.pop(path, None) is None and path in self._gone:
            raise FileNotFoundError(path)
        self._gone.add(path)

    async def sync_dir(self, path: str) -> None:
        pass

    async def space(self) -> Space:
        return await self._disk.space()

    def aligned_buffer(self, size: int) -> memoryview:
        return self._disk.aligned_buffer(size)
