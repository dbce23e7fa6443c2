"""Building tables: the one way by which flushes and merges write table files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from o3storage._native import ChaChaKey, Run, TableMerger
from o3storage.crypto import FileSealer
from o3storage.runtime.disk import Disk, DiskFull, File, OpenMode
from o3storage.runtime.jobs import Jobs

from ._table import HEADER_BYTES, Table, TableInfo, encode_header, table_name
from ._types import IndexFailure, IndexOptions
from ._view import Drop, covers

CHUNK_BYTES = 256 * 1024
"""Read at a time from one source of a merge."""
ALLOCATE_BYTES = 4 << 20
"""Space is reserved in steps of this, so that running out is found before a write."""
SYNC_BYTES = 2 << 20
"""Written between two syncs of a table. With one at its end the log's syncs beside it took up to
36 ms (p99 12) while 64 MiB were written; with these up to 18 (p99 5), alone 12 (4)."""
SALT_BYTES = 32


class _Step(TypedDict):
    out: bytes
    needs: list[int]
    table: tuple[int, int, int, int, bytes, bytes, int] | None
    done: bool
    bad: tuple[int, int, str] | None


@dataclass(slots=True)
class Context:
    """What every build of an index shares."""

    disk: Disk
    directory: str
    disk_key: bytes
    jobs: Jobs
    options: IndexOptions
    random_bytes: Callable[[int], bytes]
    next_number: Callable[[], int]


class Source:
    """The blocks of tables of one level, in order, for a merge."""

    def __init__(self, tables: Sequence[Table], drops: Sequence[Drop]) -> None:
        self._tables = list(tables)
        self._drops = drops
        self._number = 0
        self.fed: list[tuple[Table, int, int]] = []
        """(table, first block, file offset) of the last chunk."""

    async def next(self) -> tuple[ChaChaKey | None, int, bytes | None, bool]:
        """(key, file offset, records, whether they are the last). Blocks whose rows were all
        dropped are passed over: that is how a bad one leaves the index."""
        while self._tables:
            table = self._tables[0]
            if table.index is None or table.key is None or table.file is None:
                if covers(self._drops, table, table.first, table.last + b"\0"):
                    self._tables.pop(0)
                    continue
                table.suspect = True
                raise table.bad_whole()
            index = table.index
            start = self._number
            while start < index.blocks and self._is_dropped(table, start):
                start += 1
            end = start
            size = 0
            while end < index.blocks and size < CHUNK_BYTES and not self._is_dropped(table, end):
                size += index.locate(end)[1]
                end += 1
            self._number = end
            if end == index.blocks:
                self._tables.pop(0)
                self._number = 0
            if start == end:
                continue
            offset, size = index.locate(start, end - start)
            data = await self._read(table, start, end, offset, size)
            self.fed = [(table, start, offset)]
            return table.key, offset, data, not self._tables
        return None, 0, None, True

    def _is_dropped(self, table: Table, number: int) -> bool:
        if not self._drops:
            return False
        assert table.index is not None
        low = table.index.lower(number)
        last = number + 1 == table.index.blocks
        high = table.last + b"\0" if last else table.index.lower(number + 1)
        return covers(self._drops, table, low, high)

    async def _read(self, table: Table, start: int, end: int, offset: int, size: int) -> bytes:
        assert table.file is not None and table.index is not None
        try:
            data = await table.file.read(offset, size)
        except OSError as error:
            # Which block it is, does not matter to a merge: it stops at the first.
            table.suspect = True
            for number in range(start, end):
                try:
                    await table.file.read(*table.index.locate(number))
                except OSError:
                    raise table.bad(number, f"cannot be read: {error}") from error
            raise table.bad(start, f"cannot be read: {error}") from error
        if len(data) != size:
            table.suspect = True
            raise table.bad(start, "the table is cut off")
        return data

    def bad_block(self, offset: int, reason: str) -> Exception:
        """The error for a record that did not check."""
        table, start, _ = self.fed[0]
        assert table.index is not None
        table.suspect = True
        number = start
        while number + 1 < table.index.blocks and table.index.locate(number)[0] < offset:
            number += 1
        return table.bad(number, reason)


class _Output:
    """One table file being written."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.number = context.next_number()
        self.path = f"{context.directory}/{table_name(self.number)}"
        salt = context.random_bytes(SALT_BYTES)
        self.key = FileSealer(context.disk_key, salt).native_key
        self.header = encode_header(self.number, salt)
        self.file: File | None = None
        self._at = 0
        self._allocated = 0
        self._synced = 0

    async def write(self, data: bytes) -> None:
        if self.file is None:
            self.file = await self._context.disk.open(self.path, OpenMode.CREATE)
        end = self._at + len(data)
        if end > self._allocated:
            grow = max(ALLOCATE_BYTES, end - self._allocated)
            grow = min(grow, max(self._context.options.table_bytes, end - self._allocated))
            try:
                await self.file.allocate(self._allocated, grow, zero_fill=False)
            except DiskFull:
                # A nearly full disk gets space back by flushing: not for want of a whole step.
                grow = end - self._allocated
                await self.file.allocate(self._allocated, grow, zero_fill=False)
            self._allocated += grow
        await self.file.write(self._at, [data])
        self._at = end
        if end - self._synced >= SYNC_BYTES:
            await self.file.sync()
            self._synced = end

    async def finish(self, size: int) -> None:
        assert self.file is not None and size == self._at > HEADER_BYTES
        if self._allocated > self._at:
            await self.file.truncate(self._at)
        await self.file.sync()
        await self.file.close()


async def build_tables(
    context: Context,
    *,
    runs: Sequence[Run] = (),
    sources: Sequence[Source] = (),
    drop_deleted: bool,
    drops: Sequence[Drop],
    applied: int,
    pace: Callable[[int], float] | None = None,
) -> list[TableInfo]:
    """Merge runs and sources (both newest first, runs newer than sources) into new tables, synced
    with their directory. `pace(bytes read)` gives seconds to wait after a step. On any error the
    files that were begun are removed. Raises BadBlock, DiskFull, DiskFault."""
    options = context.options
    merger = TableMerger(
        len(runs) + len(sources),
        drop_deleted=drop_deleted,
        drops=list(drops),
        block_bytes=options.block_bytes,
        table_bytes=options.table_bytes,
        filter_bits=options.filter_bits_per_row,
    )
    for number, run in enumerate(runs):
        merger.add_run(number, run)
    built: list[TableInfo] = []
    output: _Output | None = None
    needs = list(range(len(runs), len(runs) + len(sources)))
    paths: list[str] = []
    try:
        while True:
            feeds = []
            for number in needs:
                key, offset, data, last = await sources[number - len(runs)].next()
                feeds.append((number, key, offset, data, last))
            if output is None:
                output = _Output(context)
                merger.next_table(output.key, output.header)
            step: _Step = await context.jobs.run(merger.step(feeds, background=pace is not None))
            if step["bad"] is not None:
                number, offset, reason = step["bad"]
                if number < len(runs):
                    raise IndexFailure(f"{reason}; this is a defect, please report it")
                raise sources[number - len(runs)].bad_block(offset, reason)
            if step["out"]:
                if output.file is None:
                    paths.append(output.path)
                await output.write(step["out"])
            if step["table"] is not None:
                rows, deleted, low, high, first, last_key, size = step["table"]
                await output.finish(size)
                built.append(
                    TableInfo(
                        output.number, size, rows, deleted, low, high, applied, first, last_key
                    )
                )
                output = None
            if step["done"]:
                break
            needs = step["needs"]
            if pace is not None:
                read = sum(len(data) for _, _, _, data, _ in feeds if data is not None)
                wait_s = pace(read)
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
        if built:
            await context.disk.sync_dir(context.directory)
    except BaseException:
        await _discard(context, output, paths)
        raise
    return built


async def discard_tables(context: Context, tables: Sequence[TableInfo]) -> None:
    """Remove tables that no edit came to name."""
    await _discard(context, None, [f"{context.directory}/{table_name(t.number)}" for t in tables])


async def _discard(context: Context, output: _Output | None, paths: list[str]) -> None:
    """Remove begun files; what cannot be removed goes at the next open."""
    try:
        if output is not None and output.file is not None:
            await output.file.close()
        for path in paths:
            await context.disk.unlink(path)
    except OSError:
        return
