"""The index of one disk: memtable, tables, snapshots, flushes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from o3storage._native import Run, index_release, index_verify
from o3storage.runtime.disk import Disk, DiskFault
from o3storage.runtime.jobs import Job, Jobs

from ._build import Context, build_tables, discard_tables
from ._manifest import Edit
from ._measure import measure, sample
from ._memtable import Memtable
from ._merges import Merger
from ._scan import Scan
from ._table import Table, TableInfo
from ._tables import Tables
from ._types import (
    MAX_KEY_BYTES,
    MAX_MARK_BYTES,
    STEP_BYTES,
    STEP_ROWS,
    BadBlock,
    IndexFailure,
    IndexOptions,
    IndexStats,
    Miss,
    PrefixLength,
)
from ._view import Need, View

Row = tuple[bytes, bytes]
MISS = Miss.MISS

MAX_NOW_STEPS = 64
"""Steps of a scan that may follow each other without a turn of the loop: mostly one or two."""


class Snapshot:
    """One instant of the index: what is written, flushed or merged later does not show in it.
    It pins memory and files until `release` (idempotent)."""

    __slots__ = ("_released", "runs", "sequence", "view")

    def __init__(self, view: View, runs: tuple[Run, ...], sequence: int) -> None:
        view.pin()
        self.view = view
        self.runs = runs
        self.sequence = sequence
        """The last batch that it sees."""
        self._released = False

    def check(self) -> None:
        """Raises ValueError after `release`: its files may be gone."""
        if self._released:
            raise ValueError("the snapshot was released")

    def release(self) -> None:
        if not self._released:
            self._released = True
            self.runs = ()
            self.view.unpin()


class Index:
    """Rows by key, in byte order. All methods run on the event loop's thread.

    Methods that end in `_now` never wait: they return `Miss.MISS` when a block must be read from
    the medium; then await the method without `_now`. All reads raise BadBlock when they touch a
    block that cannot be trusted."""

    def __init__(
        self,
        tables: Tables,
        jobs: Jobs,
        options: IndexOptions,
        prefix_length: PrefixLength,
        on_bad_block: Callable[[BadBlock], None] | None,
    ) -> None:
        self._tables = tables
        self._jobs = jobs
        self._options = options
        self._prefix_length = prefix_length
        self._stats = IndexStats()
        self._memtable = Memtable(prefix_length)
        self._memtable.sequence = tables.state.sequence
        self._merger = Merger(tables, options, self._stats, on_bad_block)
        self._flush_lock = asyncio.Lock()
        self._tidying: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(
        cls,
        disk: Disk,
        directory: str,
        *,
        disk_key: bytes,
        jobs: Jobs,
        random_bytes: Callable[[int], bytes],
        options: IndexOptions | None = None,
        prefix_length: PrefixLength,
        on_bad_block: Callable[[BadBlock], None] | None = None,
    ) -> Index:
        """Open the index in `directory`, or create it if there is none (no CURRENT file).

        `random_bytes` gives file salts (Entropy.random_bytes). `prefix_length` says how many bytes
        of a key the bloom filters cover; it must be the same at every open, and constant for keys
        that share that prefix. `on_bad_block` hears of blocks that background merges found bad.
        Raises IndexDamaged, IndexKeyWrong, DiskFault, DiskFull."""
        options = options if options is not None else IndexOptions()
        numbers = [0]

        def next_number() -> int:
            number = numbers[0]
            numbers[0] += 1
            return number

        context = Context(disk, directory, disk_key, jobs, options, random_bytes, next_number)
        tables = await Tables.open(context, numbers)
        index = cls(tables, jobs, options, prefix_length, on_bad_block)
        if options.background:
            index._merger.start()
        return index

    async def close(self) -> None:
        """Stop merges and close files. Does not flush. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._merger.stop()
        await self._wait_tidy()
        await self._tables.close()

    @property
    def mark(self) -> bytes:
        """What the last durable flush carried; b"" in a new index."""
        return self._tables.state.mark

    @property
    def sequence(self) -> int:
        """Number of the last batch written."""
        return self._memtable.sequence

    @property
    def memtable_bytes(self) -> int:
        """Bytes of rows that are not in tables yet."""
        return self._memtable.size_bytes

    @property
    def rows_estimate(self) -> int:
        """Rows in tables and memory; overwritten and deleted ones count until they are merged."""
        return self._memtable.rows + sum(
            info.rows - info.deleted for _, info in self._tables.state.tables.values()
        )

    @property
    def disk_bytes(self) -> int:
        """Bytes of all tables."""
        return sum(info.size_bytes for _, info in self._tables.state.tables.values())

    @property
    def stats(self) -> IndexStats:
        stats = self._stats
        stats.tables = len(self._tables.state.tables)
        stats.table_bytes = self.disk_bytes
        stats.block_reads = self._tables.cache.opened
        stats.memtable_runs = len(self._memtable.runs)
        return stats

    # --- writing

    def write(self, rows: Sequence[tuple[bytes, bytes | None]]) -> int:
        """Write (value) or delete (None) rows, all or nothing, visible at once; returns the batch's
        sequence number. For a key that comes twice the last one counts. Not durable before `flush`.
        `rows` must not change afterwards. Raises ValueError (limits)."""
        memtable = self._memtable
        runs = memtable.runs
        memtable.write(rows)
        if memtable.runs is not runs:
            self._tidy()
        return memtable.sequence

    def drop_range(self, low: bytes, high: bytes | None) -> int:
        """Remove every row with low <= key < high (None: to the end) that was written before, at
        once and at the cost of one record; durable with the next `flush`. Returns its sequence.
        Rows written afterwards stand. Also how a bad span is repaired: drop it and write its rows
        anew in the same step of the loop; the bad block is then never read again."""
        if len(low) > MAX_KEY_BYTES or (high is not None and len(high) > MAX_KEY_BYTES + 1):
            raise ValueError(f"a row key has at most {MAX_KEY_BYTES} bytes")
        self._memtable.seal_head()
        self._memtable.sequence += 1
        if high is None or low < high:
            self._tables.add_drop((low, high, self._memtable.sequence))
        self._tidy()
        return self._memtable.sequence

    async def flush(
        self, mark: bytes, *, barrier: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Everything written before the call is in synced tables and one synced manifest edit that
        carries `mark`. The rows are fixed in the first step of the call; `barrier` is awaited right
        before the edit, which does not happen if it raises. Flushes run one after the other.
        Raises DiskFault (the disk is out of service), DiskFull (nothing changed: the rows stay in
        memory, the call may be repeated)."""
        if len(mark) > MAX_MARK_BYTES:
            raise ValueError(f"a mark has at most {MAX_MARK_BYTES} bytes")
        memtable, tables = self._memtable, self._tables
        # From here on the flush is fixed: the mark says nothing about what is written later.
        memtable.freeze()
        sequence = memtable.sequence
        built: list[TableInfo] = []
        runs: tuple[Run, ...] = ()
        async with self._flush_lock:
            flushed = False
            try:
                self._check_writable()
                await self._wait_tidy()
                runs = memtable.frozen_runs()
                drops, new_drops = tables.drops_up_to(sequence)
                if runs:
                    built = await build_tables(
                        tables.context,
                        runs=runs,
                        drop_deleted=not tables.state.tables,
                        drops=drops,
                        applied=sequence,
                    )
                added = [(0, info) for info in built]
                if barrier is not None:
                    await barrier()
                await tables.change(
                    Edit(added=added, mark=mark, sequence=sequence, drops=new_drops)
                )
                flushed = True
                release = index_release(runs)
            finally:
                runs = ()
                memtable.thaw(flushed=flushed)
                if not flushed and tables.failure is None:
                    await discard_tables(tables.context, built)
            await self._jobs.run(release)
            self._stats.flushes += 1
            self._stats.flushed_bytes += sum(info.size_bytes for info in built)
            self._tidy()
            self._merger.wake()
            await self._merger.wait_below(self._options.level0_stall_tables)

    def _check_writable(self) -> None:
        if self._closed:
            raise IndexFailure("the index is closed")
        failure = self._tables.failure or self._merger.failure
        if failure is not None:
            raise failure

    def _tidy(self) -> None:
        """Merge runs of the memtable; by a job if it is more than a step's work."""
        job = self._memtable.tidy()
        if job is not None:
            self._tidying = asyncio.get_running_loop().create_task(self._tidy_job(job))

    async def _tidy_job(self, job: Job[Run]) -> None:
        while True:
            self._memtable.merged(await self._jobs.run(job))
            following = self._memtable.tidy() if not self._flush_lock.locked() else None
            if following is None:
                return
            job = following

    async def _wait_tidy(self) -> None:
        while self._memtable.merging and self._tidying is not None:
            await asyncio.gather(self._tidying)

    # --- reading

    def get_now(self, key: bytes, *, at: Snapshot | None = None) -> bytes | Miss | None:
        """The value of a row, None if there is none, or MISS."""
        if at is None:
            head = self._memtable.head
            if key in head:
                return head[key]
            found = self._tables.view.get(self._memtable.runs, key, self._prefix_length(key), None)
        else:
            at.check()
            found = at.view.get(at.runs, key, self._prefix_length(key), None)
        if found is None or found is False:
            return None
        return MISS if isinstance(found, Need) else found

    async def get(self, key: bytes, *, at: Snapshot | None = None) -> bytes | None:
        """As `get_now`, with disk I/O."""
        if at is None:
            head = self._memtable.head
            if key in head:
                return head[key]
        else:
            at.check()
        runs = at.runs if at is not None else self._memtable.runs
        view = at.view if at is not None else self._tables.view
        prefix = self._prefix_length(key)
        held: dict[int, bytes] = {}
        view.pin()
        try:
            while True:
                found = view.get(runs, key, prefix, held)
                if not isinstance(found, Need):
                    return None if found is False else found
                await self._fetch(view, found, held)
        finally:
            view.unpin()

    def first_now(self, prefix: bytes, *, at: Snapshot | None = None) -> Row | Miss | None:
        """The first row whose key starts with `prefix`, which must end where the bloom prefix of
        such keys ends."""
        view, runs = self._first_sources(prefix, at)
        row = view.first(runs, prefix)
        if row is not False:
            return row
        rows = self._scan_now(_prefix_scan(view, runs, prefix))
        if isinstance(rows, Miss):
            return rows
        return rows[0] if rows else None

    async def first(self, prefix: bytes, *, at: Snapshot | None = None) -> Row | None:
        """As `first_now`, with disk I/O."""
        rows = await self._scan_on(_prefix_scan(*self._first_sources(prefix, at), prefix))
        return rows[0] if rows else None

    def _first_sources(self, prefix: bytes, at: Snapshot | None) -> tuple[View, tuple[Run, ...]]:
        if at is not None:
            at.check()
            return at.view, at.runs
        if self._memtable.head_has_prefix(prefix):
            return self._tables.view, self._reader_runs()
        return self._tables.view, self._memtable.runs

    def _reader_runs(self) -> tuple[Run, ...]:
        """All of the memtable as runs."""
        memtable = self._memtable
        before = memtable.runs
        runs = memtable.reader_runs()
        if memtable.runs is not before:
            self._tidy()
            return memtable.runs
        return runs

    def scan_now(
        self, low: bytes, high: bytes | None, limit: int, *, at: Snapshot | None = None
    ) -> list[Row] | Miss:
        """At most `limit` rows with low <= key < high, ascending: fewer only at the end of the
        span. A limit over STEP_ROWS is always a miss."""
        if limit > STEP_ROWS:
            return MISS
        return self._scan_now(self._span(low, high, limit, at))

    async def scan(
        self, low: bytes, high: bytes | None, limit: int, *, at: Snapshot | None = None
    ) -> list[Row]:
        """As `scan_now`, with disk I/O."""
        return await self._scan_on(self._span(low, high, limit, at))

    def _span(self, low: bytes, high: bytes | None, limit: int, at: Snapshot | None) -> Scan:
        if at is not None:
            at.check()
            return Scan(at.view, at.runs, low, high, limit)
        view, runs = self._tables.view, self._reader_runs()
        return Scan(view, runs, low, high, limit)

    def _scan_now(self, scan: Scan) -> list[Row] | Miss:
        for _ in range(MAX_NOW_STEPS):
            state = scan.step(None)
            if state is True:
                return scan.rows
            if state is not False:
                return MISS
        return MISS

    async def _scan_on(self, scan: Scan) -> list[Row]:
        held: dict[int, bytes] = {}
        scan.view.pin()
        try:
            while True:
                state = scan.step(held)
                if state is True:
                    return scan.rows
                if state is False:
                    held.clear()
                    await asyncio.sleep(0)  # the next step is as long again
                else:
                    await self._fetch(scan.view, state, held)
        finally:
            scan.view.unpin()

    async def _fetch(self, view: View, need: Need, held: dict[int, bytes]) -> None:
        """Read the blocks that a read needs; `held` keeps them for it, whatever the cache does."""
        table = need.table
        assert table.index is not None and table.file is not None
        offset, size = table.index.locate(need.number, need.count)
        try:
            data = await table.file.read(offset, size)
            blocks = view.admit(table, need.number, need.count, offset, data)
        except (BadBlock, DiskFault) as error:
            if need.count > 1:
                # What lies ahead may not be needed: only the first one counts.
                await self._fetch(view, Need(table, need.number, 1), held)
                return
            if isinstance(error, BadBlock):
                raise
            raise table.bad(need.number, f"cannot be read: {error}") from error
        for at, block in enumerate(blocks):
            held[table.base + need.number + at] = block

    def measure(self, low: bytes, high: bytes) -> int:
        """About how many bytes of tables the rows with low <= key < high take; see `_measure`."""
        return measure(self._tables.view, low, high)

    def sample(self, low: bytes, high: bytes) -> list[tuple[bytes, int]]:
        """(key, bytes from there on) of places that lie evenly over the span; see `_measure`."""
        return sample(self._tables.view, low, high)

    def snapshot(self) -> Snapshot:
        """Pin this instant."""
        memtable = self._memtable
        return Snapshot(self._tables.view, self._reader_runs(), memtable.sequence)

    # --- house-keeping

    async def merge(self) -> bool:
        """One merge, if one is due; whether there was. Runs by itself unless options say no.
        Raises BadBlock, DiskFull, DiskFault."""
        self._check_writable()
        return await self._merger.merge(paced=False)

    async def verify(self, on_progress: Callable[[int, int], None] | None = None) -> list[BadBlock]:
        """Read and check every block of every table (from the medium); `on_progress(done, all)` in
        bytes. Returns what is bad."""
        view = self._tables.view
        view.pin()
        try:
            bad: list[BadBlock] = []
            total = sum(table.info.size_bytes for table in view.tables())
            done = 0
            for table in view.tables():
                bad.extend(await self._verify_table(table))
                done += table.info.size_bytes
                if on_progress is not None:
                    on_progress(done, total)
            return bad
        finally:
            view.unpin()

    async def _verify_table(self, table: Table) -> list[BadBlock]:
        disk = self._tables.context.disk
        probe = Table(table.path, table.info)
        await probe.open(disk, self._tables.context.disk_key)
        try:
            if probe.index is None or probe.key is None:
                return [probe.bad_whole()]
            bad: list[BadBlock] = []
            number = 0
            while number < probe.index.blocks:
                sizes: list[int] = []
                while number + len(sizes) < probe.index.blocks and sum(sizes) < STEP_BYTES:
                    sizes.append(probe.index.locate(number + len(sizes))[1])
                offset, size = probe.index.locate(number, len(sizes))
                bad.extend(await self._verify_blocks(probe, number, sizes, offset, size))
                number += len(sizes)
            return bad
        finally:
            await probe.close()

    async def _verify_blocks(
        self, table: Table, number: int, sizes: list[int], offset: int, size: int
    ) -> list[BadBlock]:
        assert table.key is not None
        try:
            data = await self._tables.context.disk.read_direct(table.path, offset, size)
        except DiskFault as error:
            if len(sizes) == 1:
                return [table.bad(number, f"cannot be read: {error}")]
            bad: list[BadBlock] = []
            for at, one in enumerate(sizes):
                start = offset + sum(sizes[:at])
                bad.extend(await self._verify_blocks(table, number + at, [one], start, one))
            return bad
        found = await self._jobs.run(index_verify(table.key, offset, sizes, data))
        return [table.bad(number + at, reason) for at, reason in found]


def _prefix_scan(view: View, runs: tuple[Run, ...], prefix: bytes) -> Scan:
    return Scan(view, runs, prefix, after_prefix(prefix), 1, filtered=True)


def after_prefix(prefix: bytes) -> bytes | None:
    """The smallest key above all keys that start with `prefix`; None if there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else None
