"""The plainest index: a dict in memory, one file on disk that a flush replaces whole."""

from __future__ import annotations

import struct

from o3storage.runtime.disk import OpenMode
from o3storage.storage._records import decode_rows, encode_rows


class DictIndex:
    def __init__(self, disk, directory):
        self.directory = directory
        self.disk = disk
        self.rows = {}
        self.mark = b""
        self.sequence = 0
        self.flushed = {}
        self.before_edit = None
        """Called between the freeze and the barrier (tests)."""

    @classmethod
    async def open(cls, core, directory="index"):
        self = cls(core.disk, directory)
        await core.disk.make_dir(directory)
        await core.disk.sync_dir("")
        try:
            file = await core.disk.open(directory + "/rows", OpenMode.READ)
        except FileNotFoundError:
            return self
        data = await file.read(0, await file.size())
        (size,) = struct.unpack_from("<I", data)
        self.mark = data[4 : 4 + size]
        self.rows = dict(decode_rows(data[4 + size :])[0])
        return self

    memtable_bytes = 0
    disk_bytes = 0

    def write(self, rows):
        self.sequence += 1
        for key, value in rows:
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = bytes(value)
        return self.sequence

    def drop_range(self, low, high):
        for key in [k for k in self.rows if k >= low and (high is None or k < high)]:
            del self.rows[key]

    def get_now(self, key, *, at=None):
        return self.rows.get(key)

    async def get(self, key, *, at=None):
        return self.rows.get(key)

    def scan_now(self, low, high, limit, *, at=None):
        keys = sorted(k for k in self.rows if low <= k and (high is None or k < high))
        return [(k, self.rows[k]) for k in keys[:limit]]

    async def scan(self, low, high, limit, *, at=None):
        return self.scan_now(low, high, limit)

    def first_now(self, prefix, *, at=None):
        keys = sorted(k for k in self.rows if k.startswith(prefix))
        return (keys[0], self.rows[keys[0]]) if keys else None

    async def first(self, prefix, *, at=None):
        return self.first_now(prefix)

    async def flush(self, mark, *, barrier=None):
        data = struct.pack("<I", len(mark)) + mark + encode_rows(sorted(self.rows.items()))
        if barrier is not None:
            await barrier()
        if "rows.new" in await self.disk.list_dir(self.directory):
            await self.disk.unlink(self.directory + "/rows.new")
        file = await self.disk.open(self.directory + "/rows.new", OpenMode.CREATE)
        await file.write_sync(0, [data])
        await file.close()
        await self.disk.rename(self.directory + "/rows.new", self.directory + "/rows")
        await self.disk.sync_dir(self.directory)
        self.mark = mark

    async def close(self):
        pass
