"""Loads many small objects into a data directory through the catalog's commands, without HTTP.

    python -m tests.scale.load DATA_DIR COUNT
    python -m tests.scale.load DATA_DIR MOST NEW_BUCKET

Keys are 40 bytes, values 1 KiB; everything is sealed, committed and synced as a PUT is.
The second form adds objects to a new bucket until a flush is nearly due, and dies by kill -9.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from o3storage import _native
from o3storage.catalog import (
    Catalog,
    CreateBucket,
    PutObject,
    create_bucket,
    drive,
    prefix_length,
)
from o3storage.cli._text import Progress
from o3storage.cluster import Node
from o3storage.runtime import JobPool, NativeJobs, SystemClock, SystemEntropy, tune_memory
from o3storage.server import open_data_dir
from o3storage.storage import Store

BUCKET = "scale"
VALUE_BYTES = 1024
TOGETHER = 512
"""Writers at a time: a batch each time the disk is free."""
NEARLY = 0.95
"""Of what makes a flush due: those writes that are under way still fit."""


def key_of(number: int) -> bytes:
    """40 bytes, spread over 1,000 directories, in no order of arrival."""
    digest = hashlib.md5(number.to_bytes(8, "big"), usedforsecurity=False).hexdigest()
    return f"{number % 1000:03d}/{digest}/{number % 1000:03d}".encode()


def value_of(number: int) -> bytes:
    return (f"{number:016d}".encode() * 64)[:VALUE_BYTES]


@contextlib.asynccontextmanager
async def opened(data_dir: Path) -> AsyncIterator[tuple[Store, Node]]:
    """A store that is made where there is none, and a node on it; closed cleanly."""
    pool = JobPool()
    await pool.start()
    clock, entropy = SystemClock(), SystemEntropy()
    directory = await open_data_dir(data_dir, pool, entropy, None, create=True)
    jobs = NativeJobs(pool)
    store = await Store.open(
        directory.disk,
        disk_key=directory.keys.node.disk_key,
        jobs=jobs,
        clock=clock,
        entropy=entropy,
        prefix_length=prefix_length,
    )
    node = await Node.open(
        store, Catalog(), keys=directory.keys.node, jobs=jobs, clock=clock, entropy=entropy
    )
    yield store, node
    await node.close()
    started = time.monotonic()
    await store.close()
    print(f"closed in {time.monotonic() - started:.1f} s", flush=True)
    directory.release()
    await pool.close()


async def put_all(
    node: Node,
    name: str,
    numbers: Iterator[int],
    *,
    key_of: Callable[[int], bytes] = key_of,
    value_of: Callable[[int], bytes] = value_of,
) -> int:
    """Make the bucket `name` and put an object for each of `numbers`; returns how many."""
    clock = SystemClock()
    made = await drive(node, create_bucket(CreateBucket(name, "root", clock.wall_ns())))
    bucket = made.bucket
    count = 0

    async def writer() -> None:
        nonlocal count
        for number in numbers:
            key, value = key_of(number), value_of(number)
            upload = node.new_stream(bucket.bucket_id, key)
            digester = _native.Digester()
            await upload.write(memoryview(value), True, digester)
            digests = digester.finish()
            command = PutObject(
                bucket.bucket_id,
                bucket.epoch,
                key,
                clock.wall_ns(),
                "root",
                len(value),
                digests["md5"].hex(),
                digests["blake3"],
                body=upload.ref.pack(),
                started_ns=upload.started_ns,
                headers={"content-type": "binary/octet-stream"},
            )
            await node.submit(command, upload.frames)
            count += 1

    await asyncio.gather(*[writer() for _ in range(TOGETHER)])
    return count


async def load(
    data_dir: Path,
    count: int,
    *,
    key_of: Callable[[int], bytes] = key_of,
    value_of: Callable[[int], bytes] = value_of,
) -> None:
    """Make a data directory with a bucket of `count` objects, numbered from 0."""
    progress = Progress("load", count)

    def numbers() -> Iterator[int]:
        for number in range(count):
            if number % 10_000 == 0:
                progress.update(number)
            yield number

    async with opened(data_dir) as (_, node):
        started = time.monotonic()
        await put_all(node, BUCKET, numbers(), key_of=key_of, value_of=value_of)
        progress.done()
        took_s = time.monotonic() - started
        print(f"{count:,} objects in {took_s:.0f} s, {count / took_s:,.0f}/s", flush=True)


async def load_and_die(data_dir: Path, most: int, bucket: str) -> None:
    """Put up to `most` objects more into a new bucket, stop when a flush is nearly due, and die
    before it: all of them have to be replayed."""
    async with opened(data_dir) as (store, node):
        flusher, options = store._flusher, store._core.options

        def near() -> bool:
            return (
                flusher.entries_since > NEARLY * options.flush_entries
                or store._core.index.memtable_bytes > NEARLY * options.flush_memtable_bytes
                or store._log.bytes_since_flush > NEARLY * options.flush_log_bytes
            )

        numbers = itertools.takewhile(lambda _: not near(), range(most))
        count = await put_all(node, bucket, numbers)
        assert store.stats().flushes == 0
        print(
            f"{count} objects not flushed: {flusher.entries_since:,} entries, "
            f"{store._core.index.memtable_bytes / 1e6:.0f} MB of rows, "
            f"{store._log.bytes_since_flush / 1e6:.0f} MB of log",
            flush=True,
        )
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    os.umask(0o077)
    tune_memory()
    data_dir, count = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    asyncio.run(
        load_and_die(data_dir, count, sys.argv[3]) if sys.argv[3:] else load(data_dir, count)
    )


if __name__ == "__main__":
    main()
