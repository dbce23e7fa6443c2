"""Loads many small objects into a data directory through the catalog's commands, without HTTP.

    python -m tests.scale.load DATA_DIR COUNT

Keys are 40 bytes, values 1 KiB; everything is sealed, committed and synced as a PUT is.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Callable
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


def key_of(number: int) -> bytes:
    """40 bytes, spread over 1,000 directories, in no order of arrival."""
    digest = hashlib.md5(number.to_bytes(8, "big"), usedforsecurity=False).hexdigest()
    return f"{number % 1000:03d}/{digest}/{number % 1000:03d}".encode()


def value_of(number: int) -> bytes:
    return (f"{number:016d}".encode() * 64)[:VALUE_BYTES]


async def load(
    data_dir: Path,
    count: int,
    *,
    key_of: Callable[[int], bytes] = key_of,
    value_of: Callable[[int], bytes] = value_of,
) -> None:
    """Make a data directory with a bucket of `count` objects, numbered from 0."""
    pool = JobPool()
    await pool.start()
    clock, entropy = SystemClock(), SystemEntropy()
    opened = await open_data_dir(data_dir, pool, entropy, None, create=True)
    jobs = NativeJobs(pool)
    store = await Store.open(
        opened.disk,
        disk_key=opened.keys.node.disk_key,
        jobs=jobs,
        clock=clock,
        entropy=entropy,
        prefix_length=prefix_length,
    )
    node = await Node.open(
        store, Catalog(), keys=opened.keys.node, jobs=jobs, clock=clock, entropy=entropy
    )
    made = await drive(node, create_bucket(CreateBucket(BUCKET, "root", clock.wall_ns())))
    bucket = made.bucket
    progress = Progress("load", count)
    numbers = iter(range(count))

    async def writer() -> None:
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
            if number % 10_000 == 0:
                progress.update(number)

    started = time.monotonic()
    await asyncio.gather(*[writer() for _ in range(TOGETHER)])
    progress.done()
    took_s = time.monotonic() - started
    print(f"{count:,} objects in {took_s:.0f} s, {count / took_s:,.0f}/s", flush=True)
    await node.close()
    started = time.monotonic()
    await store.close()
    print(f"closed in {time.monotonic() - started:.1f} s", flush=True)
    opened.release()
    await pool.close()


def main() -> None:
    os.umask(0o077)
    tune_memory()
    asyncio.run(load(Path(sys.argv[1]).absolute(), int(sys.argv[2])))


if __name__ == "__main__":
    main()
