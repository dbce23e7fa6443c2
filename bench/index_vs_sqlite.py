"""The index against SQLite (WAL, synchronous=FULL), both through Python, in one run.

Both get the same keys and 120-byte values in batches of 64. SQLite commits (and syncs) each batch.
The index's rows are made durable by the log beside it, so here each batch is first appended to a
log file and synced (`File.write_sync`), then written to the index, which flushes and merges as it
does in the store; all merges are finished inside the measured time. The values are sealed and
checksummed by the index, not by SQLite.

    python -m bench.index_vs_sqlite [--seconds S] [--preload N] [--gets N] [--dir D]

Four measures: sequential keys from empty; then on a preloaded store random gets, scans of 1,000
rows, and puts of random 24-byte keys. Each prints rates and CPU (user + system, all
threads) and the ratio to SQLite. The puts go on for `--seconds` in each arm, of the same keys in
the same order: the faster arm gets further, and so has more to merge.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

from o3storage.runtime import JobPool, NativeJobs, RealDisk
from o3storage.runtime.disk import OpenMode
from o3storage.storage.index import Index, IndexOptions, Miss

from ._result import Result

BATCH = 64
VALUE_BYTES = 120
FLUSH_BYTES = 32 << 20
LOG_BYTES = 64 << 20
SCAN_ROWS = 1000
SECONDS = 60.0
ANY = 1 << 62
"""More rows than any arm writes in its time."""


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def keys_of(kind: str, count: int, seed: int) -> Iterator[bytes]:
    """Sequential keys, or random ones of 24 bytes."""
    if kind == "sequential":
        for n in range(count):
            yield b"\x10\0\0\0\0\0\0\0\1objects/%012d\0\0" % n
    else:
        rng = random.Random(seed)
        for _ in range(count):
            yield rng.randbytes(24)


def batches_of(kind: str, count: int, seed: int) -> Iterator[list[tuple[bytes, bytes | None]]]:
    values = random.Random(seed + 1)
    batch: list[tuple[bytes, bytes | None]] = []
    for key in keys_of(kind, count, seed):
        batch.append((key, values.randbytes(VALUE_BYTES)))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def memory_mb() -> float:
    """Resident memory, mapped files included."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Meter:
    """Wall and CPU time of a piece of work, without that of making its input."""

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self.rows = 0
        self._wall = self._cpu = 0.0

    def __enter__(self) -> Meter:
        self._wall, self._cpu = time.perf_counter(), cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s += time.perf_counter() - self._wall
        self.cpu_s += cpu_s() - self._cpu


class IndexStore:
    """The index with a log in front of it, as in the store."""

    def __init__(self, root: Path, *, sync: bool) -> None:
        self._root = root
        self._sync = sync
        self._written = 0

    async def open(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        self._pool = JobPool(2)
        await self._pool.start()
        self._disk = RealDisk(self._root, self._pool)
        self._log = await self._disk.open("log", OpenMode.CREATE)
        await self._log.allocate(0, LOG_BYTES, zero_fill=True)
        await self._log.sync()
        self._log_at = 0
        self.index = await Index.open(
            self._disk,
            "index",
            disk_key=bytes(32),
            jobs=NativeJobs(self._pool),
            random_bytes=os.urandom,
            options=IndexOptions(),
            prefix_length=len,
        )
        self._flush: asyncio.Task[None] | None = None

    async def write(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        if self._sync:
            record = b"".join([part for row in batch for part in row if part is not None])
            if self._log_at + len(record) > LOG_BYTES:
                self._log_at = 0
            await self._log.write_sync(self._log_at, [record])
            self._log_at += -(-len(record) // 4096) * 4096
        self.index.write(batch)
        if self.index.memtable_bytes > FLUSH_BYTES and (self._flush is None or self._flush.done()):
            await self._settle_flush()
            self._flush = asyncio.get_running_loop().create_task(self.index.flush(b"mark"))
        if self.index.memtable_bytes > 2 * FLUSH_BYTES:
            await self._settle_flush()
        elif not self._sync:
            await asyncio.sleep(0)

    async def _settle_flush(self) -> None:
        if self._flush is not None:
            await asyncio.gather(self._flush)

    async def finish(self) -> None:
        """Flush and finish all merges."""
        await self._settle_flush()
        await self.index.flush(b"mark")
        while await self.index.merge():
            pass

    async def close(self) -> None:
        await self.index.close()
        await self._log.close()
        await self._pool.close()


class SqliteStore:
    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(root / "db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        # As much memory for pages as the index has for blocks.
        self._db.execute(f"PRAGMA cache_size=-{IndexOptions().cache_bytes // 1024}")
        self._db.execute("CREATE TABLE t (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")

    def write(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO t VALUES (?, ?)", batch)
        self._db.execute("COMMIT")

    def get(self, key: bytes) -> bytes:
        found = self._db.execute("SELECT v FROM t WHERE k = ?", (key,)).fetchone()
        return bytes(found[0])

    def scan(self, low: bytes) -> int:
        query = "SELECT k, v FROM t WHERE k >= ? ORDER BY k LIMIT ?"
        return len(self._db.execute(query, (low, SCAN_ROWS)).fetchall())

    def close(self) -> None:
        self._db.close()


RESULTS: list[Result] = []


def report(  # noqa: PLR0917
    what: str, count: int, ours: Meter, theirs: Meter | None, goal: float | None, rows: int = 0
) -> None:
    """`count` in our time, `rows` (by default as many) in theirs."""
    rows = rows or count
    line = (
        f"{what:<34} index {count / ours.wall_s:>9,.0f}/s {ours.cpu_s / count * 1e6:>7.2f} us CPU"
    )
    if theirs is not None:
        ratio = count / ours.wall_s / (rows / theirs.wall_s)
        line += (
            f"   sqlite {rows / theirs.wall_s:>9,.0f}/s {theirs.cpu_s / rows * 1e6:>7.2f} us CPU"
            f"   ratio {ratio:5.2f}"
        )
        if goal is not None:
            line += f" (goal {goal:g}) {'ok' if ratio >= goal else 'BELOW'}"
            RESULTS.append(Result(f"index: {what}, of SQLite's rate", ratio, goal, at_least=True))
    print(line, flush=True)


async def load(store: IndexStore, kind: str, rows: int, seed: int, seconds: float) -> Meter:
    """Batches until `rows` or `seconds` are over, whichever comes first, and all merges."""
    meter = Meter()
    for batch in batches_of(kind, rows, seed):
        with meter:
            await store.write(batch)
        meter.rows += len(batch)
        if meter.wall_s >= seconds:
            break
    with meter:
        await store.finish()
    return meter


def load_sqlite(store: SqliteStore, kind: str, rows: int, seed: int, seconds: float) -> Meter:
    meter = Meter()
    for batch in batches_of(kind, rows, seed):
        with meter:
            store.write(batch)
        meter.rows += len(batch)
        if meter.wall_s >= seconds:
            break
    return meter


async def get_all(index: Index, keys: list[bytes]) -> int:
    missed = 0
    for key in keys:
        value = index.get_now(key)
        if value is Miss.MISS:
            missed += 1
            value = await index.get(key)
        assert value is not None
    return missed


def repeat(meter: Meter, work: Callable[[bytes], int], lows: list[bytes]) -> None:
    with meter:
        for low in lows:
            assert work(low) == SCAN_ROWS


async def run(arguments: argparse.Namespace, root: Path) -> None:
    seconds, preload, gets = arguments.seconds, arguments.preload, arguments.gets
    references = not arguments.no_sqlite
    print(f"batches of {BATCH}, {VALUE_BYTES}-byte values, every batch synced, merges finished")

    store = IndexStore(root / "sequential", sync=True)
    await store.open()
    ours = await load(store, "sequential", ANY, 1, seconds)
    await store.close()
    theirs = None
    if references:
        sqlite = SqliteStore(root / "sequential-sqlite")
        theirs = load_sqlite(sqlite, "sequential", ANY, 1, seconds)
        sqlite.close()
    report("put sequential from empty", ours.rows, ours, theirs, 1, theirs.rows if theirs else 0)

    store = IndexStore(root / "random", sync=False)
    await store.open()
    ours = await load(store, "random", preload, 2, inf)
    report(f"preload random, {preload:,} (no log)", preload, ours, None, None)
    if references:
        sqlite = SqliteStore(root / "random-sqlite")
        sqlite._db.execute("PRAGMA synchronous=OFF")
        load_sqlite(sqlite, "random", preload, 2, inf)
        sqlite._db.execute("PRAGMA synchronous=FULL")

    keys = list(keys_of("random", preload, 2))
    random.Random(4).shuffle(keys)
    keys = keys[:gets]
    await get_all(store.index, keys[: gets // 4])
    ours = Meter()
    with ours:
        missed = await get_all(store.index, keys)
    if references:
        for key in keys[: gets // 4]:
            sqlite.get(key)
        theirs = Meter()
        with theirs:
            for key in keys:
                sqlite.get(key)
    report(f"get random of {preload:,}, {missed} waited", len(keys), ours, theirs, 0.5)

    lows = [bytes([n]) * 8 for n in range(10, 240, 5)]
    ours, theirs_scan = Meter(), Meter()
    with ours:
        for low in lows:
            found = store.index.scan_now(low, None, SCAN_ROWS)
            if isinstance(found, Miss):
                found = await store.index.scan(low, None, SCAN_ROWS)
            assert len(found) == SCAN_ROWS
    if references:
        repeat(theirs_scan, sqlite.scan, lows)
    report("scan of 1,000 rows", len(lows), ours, theirs_scan if references else None, None)

    store._sync = True
    ours = await load(store, "random", ANY, 3, seconds)
    if references:
        theirs = load_sqlite(sqlite, "random", ANY, 3, seconds)
        sqlite.close()
    rows = theirs.rows if theirs else 0
    report(f"put random onto {preload:,}", ours.rows, ours, theirs, 2, rows)
    print(f"index: {store.index.stats}; resident {memory_mb():,.0f} MB", flush=True)
    await store.close()


async def run_scale(arguments: argparse.Namespace, root: Path) -> None:
    """Many rows: how long opening takes, and how much memory the index alone needs."""
    rows = arguments.scale
    print(f"{rows:,} rows with 40-byte keys and 160-byte values")
    store = IndexStore(root / "scale", sync=False)
    await store.open()
    values = random.Random(1)
    meter, step = Meter(), rows // 10
    for start in range(0, rows, BATCH):
        batch: list[tuple[bytes, bytes | None]] = [
            (b"\x10\0\0\0\0\0\0\0\1objects/%019d/a\0\0" % n, values.randbytes(160))
            for n in range(start, min(start + BATCH, rows))
        ]
        with meter:
            await store.write(batch)
        if start // step != (start + BATCH) // step:
            print(f"  {start + BATCH:,} rows, resident {memory_mb():,.0f} MB", flush=True)
    with meter:
        await store.finish()
    print(f"loaded: {meter.wall_s:.0f} s, {meter.cpu_s / rows * 1e6:.2f} us CPU a row")
    await store.close()
    # A process of its own, so that the resident memory is that of an opened index.
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.index_vs_sqlite",
        "--open",
        str(root / "scale"),
        "--scale",
        str(rows),
    )
    await process.wait()


async def run_open(root: Path, rows: int) -> None:
    """Open an index that `run_scale` made, and read from it at random."""
    pool = JobPool(2)
    await pool.start()
    before_mb = memory_mb()
    meter = Meter()
    with meter:
        index = await Index.open(
            RealDisk(root, pool),
            "index",
            disk_key=bytes(32),
            jobs=NativeJobs(pool),
            random_bytes=os.urandom,
            prefix_length=len,
        )
    stats = index.stats
    print(
        f"opened {stats.tables} tables, {stats.table_bytes / 1e9:.2f} GB: {meter.wall_s:.2f} s; "
        f"resident {before_mb:,.0f} MB before, {memory_mb():,.0f} MB after"
    )
    rng = random.Random(2)
    meter = Meter()
    count = 100_000
    with meter:
        for _ in range(count):
            key = b"\x10\0\0\0\0\0\0\0\1objects/%019d/a\0\0" % rng.randrange(rows)
            value = index.get_now(key)
            if isinstance(value, Miss):
                value = await index.get(key)
            assert value is not None and len(value) == 160
    report(f"get random of {rows:,}", count, meter, None, None)
    print(f"resident {memory_mb():,.0f} MB after {count:,} gets at random")
    for _ in range(50):
        low = b"\x10\0\0\0\0\0\0\0\1objects/%019d" % rng.randrange(rows - SCAN_ROWS)
        assert len(await index.scan(low, None, SCAN_ROWS)) == SCAN_ROWS
    for start in range(0, 200_000, BATCH):
        index.write([(rng.randbytes(40), rng.randbytes(160)) for _ in range(start, start + BATCH)])
        await asyncio.sleep(0)
    print(f"resident {memory_mb():,.0f} MB with {index.memtable_bytes / 1e6:.0f} MB of memtable")
    await index.flush(b"")
    print(f"resident {memory_mb():,.0f} MB after its flush")
    await index.close()
    await pool.close()


def main(seconds: float | None = None) -> list[Result]:
    """All measures; with few `seconds` on a smaller store."""
    small = seconds is not None
    preload, gets = (100_000, 20_000) if small else (1_000_000, 200_000)
    arguments = argparse.Namespace(
        seconds=seconds or SECONDS, preload=preload, gets=gets, no_sqlite=False
    )
    RESULTS.clear()
    with tempfile.TemporaryDirectory(prefix="index-bench-") as root:
        asyncio.run(run(arguments, Path(root)))
    return list(RESULTS)


def command() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each put, in each arm")
    parser.add_argument("--preload", type=int, default=1_000_000)
    parser.add_argument("--gets", type=int, default=200_000)
    parser.add_argument("--dir", help="directory on the disk to measure (default: a temporary one)")
    parser.add_argument("--no-sqlite", action="store_true")
    parser.add_argument("--scale", type=int, help="instead: load so many rows, open, read")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        asyncio.run(run_open(Path(arguments.open), arguments.scale))
        return 0
    root = Path(tempfile.mkdtemp(prefix="index-bench-", dir=arguments.dir))
    try:
        asyncio.run((run_scale if arguments.scale else run)(arguments, root))
    finally:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(command())
