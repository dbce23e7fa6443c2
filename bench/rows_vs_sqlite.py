"""Rows in the storage engine against rows of SQLite (WAL, synchronous=FULL).

    python -m bench.rows_vs_sqlite [--seconds S] [--preload N] [--gets N] [--dir D] [--apart]

The engine alone, no HTTP and no catalog, both through Python, on one disk: the same keys and
120-byte values in batches of 64, a batch begun only when the one before it is durable. SQLite
commits each batch as one transaction. The engine takes it as one command: `Store.append` syncs its
entry in the log, then `Store.apply` makes its rows visible, whose outcome rides in the next batch.
With `--apart` each row is a command of its own, as of 64 small requests that meet: 64 entries, one
sync. Either way a row goes to the log twice before it goes to a table, sealed and checksummed each
time; SQLite does neither. Flushes, merges and compactions are the store's own, with the options of
production. What is left to flush and merge at the end is done inside the measured time; what is
left to compact is told apart, because its pace is bounded and not its work.

Four measures: puts under sequential keys from empty; then on a preloaded store random gets, scans
of 1,000 rows, and puts under random keys of 24 bytes. Each prints rates and CPU (user + system, all
threads) and the ratio to SQLite. The puts go on for `--seconds` in each arm, of the same keys in
the same order: the faster arm gets further, and so has more to merge.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

from o3storage.runtime import (
    JobPool,
    NativeJobs,
    RealDisk,
    SystemClock,
    SystemEntropy,
    tune_memory,
)
from o3storage.storage import Entry, EntryKind, HardState, Miss, SealedFrame, Store
from o3storage.storage._rows import RowChange
from o3storage.storage.index import Index, IndexOptions

from ._result import Result

BATCH = 64
VALUE_BYTES = 120
SCAN_ROWS = 1000
SECONDS = 60.0
ANY = 1 << 62
"""More rows than any arm writes in its time."""
GROUP = 1
KEY = bytes(32)
"""Of the disk; of the epoch too, where there are frames."""
ROW = b"\x10"
"""Table byte of the rows: the lowest that is not the store's own."""
END = b"\x11"
"""Behind all rows."""


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def keys_of(kind: str, count: int, seed: int) -> Iterator[bytes]:
    """Of 24 bytes, sequential or random."""
    if kind == "sequential":
        for n in range(count):
            yield b"objects/%016d" % n
    else:
        rng = random.Random(seed)
        for _ in range(count):
            yield rng.randbytes(24)


def batches_of(kind: str, count: int, seed: int) -> Iterator[list[tuple[bytes, bytes]]]:
    values = random.Random(seed + 1)
    batch: list[tuple[bytes, bytes]] = []
    for key in keys_of(kind, count, seed):
        batch.append((key, values.randbytes(VALUE_BYTES)))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


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


class Engine:
    """The store of one disk, driven through the interface that the rooms above use."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._index = 0

    async def open(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        self._pool = JobPool()
        await self._pool.start()
        self.store = await Store.open(
            RealDisk(self._root, self._pool),
            disk_key=KEY,
            jobs=NativeJobs(self._pool),
            clock=SystemClock(),
            entropy=SystemEntropy(),
            prefix_length=len,
        )

    async def commit(
        self,
        commands: Sequence[bytes],
        frames: Sequence[SealedFrame],
        outcomes: Sequence[Sequence[RowChange]],
    ) -> None:
        """An entry for each command, synced together; then each writes its rows."""
        first = self._index + 1
        entries = [
            Entry(index, 1, EntryKind.COMMAND, command)
            for index, command in enumerate(commands, first)
        ]
        hard = HardState(1, 1, self._index)
        await self.store.append(GROUP, hard, entries, frames)
        for entry, rows in zip(entries, outcomes, strict=True):
            self.store.apply(GROUP, entry.index, rows)
        self._index = entries[-1].index
        if self.store.crowded:
            await self.store.flush()

    async def finish(self) -> None:
        """Flush, and finish all merges."""
        await self.store.flush()
        index = self.store._core.index
        assert isinstance(index, Index)
        while await index.merge():
            pass

    async def compact(self) -> None:
        """All that is worth it, at the pace that the options allow."""
        while await self.store.compact():
            await self.store.flush()

    async def close(self) -> None:
        await self.store.close()
        await self._pool.close()


class Rows(Engine):
    """Rows alone. `together`: a batch is one command, as it is one transaction of SQLite, else each
    row is one."""

    def __init__(self, root: Path, *, together: bool) -> None:
        super().__init__(root)
        self._together = together

    async def write(self, batch: list[tuple[bytes, bytes]]) -> None:
        commands = [key + value for key, value in batch]
        rows: list[RowChange] = [(ROW + key, value) for key, value in batch]
        if self._together:
            await self.commit([b"".join(commands)], (), [rows])
        else:
            await self.commit(commands, (), [[row] for row in rows])


class SqliteStore:
    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(root / "db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self.sync(True)
        # As much memory for pages as the index has for blocks.
        self._db.execute(f"PRAGMA cache_size=-{IndexOptions().cache_bytes // 1024}")
        self._db.execute("CREATE TABLE t (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")

    def sync(self, on: bool) -> None:
        """Whether a commit is synced, as it is from the start."""
        self._db.execute(f"PRAGMA synchronous={'FULL' if on else 'OFF'}")

    def write(self, batch: list[tuple[bytes, bytes]]) -> None:
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
    what: str, count: int, ours: Meter, theirs: Meter, goal: float | None, rows: int = 0
) -> None:
    """`count` in our time, `rows` (by default as many) in theirs."""
    rows = rows or count
    ratio = count / ours.wall_s / (rows / theirs.wall_s)
    line = (
        f"{what:<34} engine {count / ours.wall_s:>9,.0f}/s {ours.cpu_s / count * 1e6:>7.2f} us CPU"
        f"   sqlite {rows / theirs.wall_s:>9,.0f}/s {theirs.cpu_s / rows * 1e6:>7.2f} us CPU"
        f"   ratio {ratio:5.2f}"
    )
    if goal is not None:
        line += f" (goal {goal:g}) {'ok' if ratio >= goal else 'BELOW'}"
        RESULTS.append(Result(f"rows: {what}, of SQLite's rate", ratio, goal, at_least=True))
    print(line, flush=True)


async def load(store: Rows, kind: str, rows: int, seed: int, seconds: float) -> Meter:
    """Batches until `rows` or `seconds` are over, whichever comes first, and what is then left to
    flush and merge."""
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


async def get_all(store: Store, keys: list[bytes]) -> int:
    """How many waited for the disk."""
    missed = 0
    for key in keys:
        value = store.get_now(ROW + key)
        if isinstance(value, Miss):
            missed += 1
            value = await store.get(ROW + key)
        assert value is not None and len(value) == VALUE_BYTES
    return missed


async def scan_all(store: Store, lows: list[bytes]) -> None:
    for low in lows:
        found = store.scan_now(ROW + low, END, SCAN_ROWS)
        if isinstance(found, Miss):
            found = await store.scan(ROW + low, END, SCAN_ROWS)
        assert len(found) == SCAN_ROWS


async def run(arguments: argparse.Namespace, root: Path) -> None:
    seconds, preload = arguments.seconds, arguments.preload
    print(
        f"batches of {BATCH} rows of {VALUE_BYTES} bytes, in the engine "
        f"{'each row' if arguments.apart else 'each batch'} a command; synced: each batch before "
        "the next (engine: the log; SQLite: its WAL); merges finished"
    )
    store = Rows(root / "sequential", together=not arguments.apart)
    await store.open()
    ours = await load(store, "sequential", ANY, 1, seconds)
    await compact_rest(store)
    await store.close()
    sqlite = SqliteStore(root / "sequential-sqlite")
    theirs = load_sqlite(sqlite, "sequential", ANY, 1, seconds)
    sqlite.close()
    report("put sequential from empty", ours.rows, ours, theirs, 1, theirs.rows)

    store = Rows(root / "random", together=not arguments.apart)
    await store.open()
    await load(store, "random", preload, 2, inf)
    await store.compact()
    sqlite = SqliteStore(root / "random-sqlite")
    sqlite.sync(False)
    load_sqlite(sqlite, "random", preload, 2, inf)
    sqlite.sync(True)

    keys = list(keys_of("random", preload, 2))
    random.Random(4).shuffle(keys)
    keys = keys[: arguments.gets]
    warming = keys[: len(keys) // 4]
    await get_all(store.store, warming)
    ours, theirs = Meter(), Meter()
    with ours:
        missed = await get_all(store.store, keys)
    for key in warming:
        sqlite.get(key)
    with theirs:
        for key in keys:
            sqlite.get(key)
    report(f"get random of {preload:,}, {missed} waited", len(keys), ours, theirs, 0.5)

    lows = [bytes([n]) * 8 for n in range(10, 240, 5)]
    ours, theirs = Meter(), Meter()
    with ours:
        await scan_all(store.store, lows)
    with theirs:
        for low in lows:
            assert sqlite.scan(low) == SCAN_ROWS
    report("scan of 1,000 rows", len(lows), ours, theirs, None)

    ours = await load(store, "random", ANY, 3, seconds)
    await compact_rest(store)
    await store.close()
    theirs = load_sqlite(sqlite, "random", ANY, 3, seconds)
    sqlite.close()
    report(f"put random onto {preload:,}", ours.rows, ours, theirs, 2, theirs.rows)


async def compact_rest(store: Rows) -> None:
    """What the engine did beside the puts since it was opened, and the compaction that is left."""
    stats = store.store.stats()
    index = store.store._core.index
    assert isinstance(index, Index)
    done = stats.compactions
    rest = Meter()
    with rest:
        await store.compact()
    print(
        f"engine: {stats.batches:,} batches of {stats.batch_bytes / 1e6:,.0f} MB, {stats.flushes} "
        f"flushes, {index.stats.merges} merges, {done} compactions; {stats.compactions - done} "
        f"more afterwards: {rest.wall_s:.1f} s, {rest.cpu_s:.1f} s of CPU",
        flush=True,
    )


def main(seconds: float | None = None) -> list[Result]:
    """All measures; with few `seconds` on a smaller store."""
    small = seconds is not None
    preload, gets = (100_000, 20_000) if small else (1_000_000, 200_000)
    arguments = argparse.Namespace(
        seconds=seconds or SECONDS, preload=preload, gets=gets, apart=False
    )
    RESULTS.clear()
    tune_memory()
    with tempfile.TemporaryDirectory(prefix="rows-bench-") as root:
        asyncio.run(run(arguments, Path(root)))
    return list(RESULTS)


def command() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each put, in each arm")
    parser.add_argument("--preload", type=int, default=1_000_000)
    parser.add_argument("--gets", type=int, default=200_000)
    parser.add_argument("--dir", help="directory on the disk to measure (default: a temporary one)")
    parser.add_argument("--apart", action="store_true", help="each row a command of its own")
    arguments = parser.parse_args()
    tune_memory()
    root = Path(tempfile.mkdtemp(prefix="rows-bench-", dir=arguments.dir))
    try:
        asyncio.run(run(arguments, root))
    finally:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(command())
