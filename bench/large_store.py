"""A store of a million objects: whole objects against SQLite, and pages of listings under load.

    python -m bench.large_store [--objects N] [--data-dir D]

1. The node without HTTP: random gets of whole objects of 120 bytes (the catalog's query of the
   version, placement, the frame, BLAKE3, unsealing), beside a row of SQLite (WAL,
   synchronous=FULL), both through Python, with the same keys of 24 bytes. The objects are written
   as PUTs write them. The goal is for the engine alone: `bench.objects_vs_sqlite`.
2. The server over the same data: pages of 1,000 keys and of 1,000 common prefixes, one at a time,
   beside an open loop of the mixed load of `bench.sustained` at half of its peak.

With --data-dir the directory is made there and kept; one that is there is used as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.scale.load import BUCKET, load

from o3storage.catalog import Catalog, get_bucket, head_version, prefix_length
from o3storage.cli._bench import percentile
from o3storage.cli._client import Client, Credentials
from o3storage.cli._text import table
from o3storage.cluster import Node
from o3storage.crypto import StreamRef
from o3storage.runtime import JobPool, NativeJobs, SystemClock, SystemEntropy, tune_memory
from o3storage.server import open_data_dir, read_root_key, read_running
from o3storage.storage import Miss, Store

from ._open_loop import CONNECTIONS, Workload
from ._result import Result
from ._store import cpu_s, peak_rss_mib, running_store
from .rows_vs_sqlite import BATCH, Meter, SqliteStore
from .sustained import MIX

OBJECTS = 1_000_000
GETS = 100_000
VALUE_BYTES = 120
PREFIXES = 1000
SHARE_OF_PEAK = 0.5
PEAK_SECONDS = 10.0
SECONDS = 30.0
PAGE_KEYS = 1000
GOALS_MS = {"keys": 20.0, "common prefixes": 100.0}


def key_of(number: int) -> bytes:
    """24 bytes: one of PREFIXES directories, then what looks random."""
    tail = (number * 0x9E3779B97F4A7C15 + 1) % 2**64
    return b"%03d/%020d" % (tail % PREFIXES, tail)


def value_of(number: int) -> bytes:
    return b"%016d" % number * (VALUE_BYTES // 16) + b"x" * (VALUE_BYTES % 16)


async def get_objects(data_dir: Path, numbers: list[int]) -> tuple[Meter, int]:
    """Time of getting these objects, and how many had to wait for the disk."""
    pool = JobPool()
    await pool.start()
    clock, entropy = SystemClock(), SystemEntropy()
    opened = await open_data_dir(data_dir, pool, entropy, None, create=False)
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
    bucket_id = (await node.query(get_bucket(BUCKET))).bucket_id
    waited = 0

    async def get(number: int) -> bytes:
        nonlocal waited
        query = head_version(bucket_id, key_of(number))
        found: Any = node.query_now(query)
        slow = found is Miss.MISS
        if slow:
            found = await node.query(query)
        ref = StreamRef.unpack(found.body)
        body = node.read_small_now(ref)
        if body is None:
            slow = True
            body = b"".join([bytes(piece) async for piece in node.read_stream(ref)])
        waited += slow
        return body

    for number in numbers[: len(numbers) // 4]:
        assert await get(number) == value_of(number)
    waited = 0
    meter = Meter()
    with meter:
        for number in numbers:
            await get(number)
    await node.close()
    await store.close()
    opened.release()
    await pool.close()
    return meter, waited


def get_rows(root: Path, objects: int, numbers: list[int]) -> Meter:
    """The same of SQLite."""
    sqlite = SqliteStore(root)
    sqlite.sync(False)
    order = list(range(objects))
    random.Random(2).shuffle(order)
    for at in range(0, objects, BATCH):
        sqlite.write([(key_of(number), value_of(number)) for number in order[at : at + BATCH]])
    sqlite.sync(True)
    for number in numbers[: len(numbers) // 4]:
        assert sqlite.get(key_of(number)) == value_of(number)
    meter = Meter()
    with meter:
        for number in numbers:
            sqlite.get(key_of(number))
    sqlite.close()
    return meter


def compare(data_dir: Path, objects: int, gets: int) -> None:
    numbers = random.Random(4).sample(range(objects), min(gets, objects))
    ours, waited = asyncio.run(get_objects(data_dir, numbers))
    with tempfile.TemporaryDirectory(prefix="o3bench") as name:
        theirs = get_rows(Path(name), objects, numbers)
    rate, other = len(numbers) / ours.wall_s, len(numbers) / theirs.wall_s
    print(
        f"random get of {objects:,} objects of {VALUE_BYTES} bytes, {waited:,} of "
        f"{len(numbers):,} waited: {rate:,.0f}/s, {ours.cpu_s / len(numbers) * 1e6:.1f} us CPU; "
        f"a row of SQLite {other:,.0f}/s, {theirs.cpu_s / len(numbers) * 1e6:.1f} us CPU; "
        f"ratio {rate / other:.2f}",
        flush=True,
    )


async def pages(client: Client, seconds: float) -> dict[str, list[float]]:
    """Seconds of each page, both kinds in turn, from a random place on."""
    chance = random.Random(5)
    took: dict[str, list[float]] = {kind: [] for kind in GOALS_MS}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for kind, found in took.items():
            query = {"list-type": "2", "max-keys": str(PAGE_KEYS)}
            if kind == "keys":
                query["start-after"] = f"{chance.randrange(PREFIXES - 1):03d}/"
            else:
                query["delimiter"] = "/"
            started = time.perf_counter()
            answer = await client.request("GET", f"/{BUCKET}", query=query)
            found.append(time.perf_counter() - started)
            assert answer.status == 200, answer
            assert b"<KeyCount>" in answer.body
    await client.close()
    return took


async def lists(data_dir: Path, pid: int, seconds: float, directory: Path) -> list[Result]:
    found, key = read_running(data_dir), read_root_key(data_dir)
    assert found is not None and key is not None
    credentials = Credentials(key.key_id, key.secret)
    mixed = Workload(directory, found.url, credentials, region=found.region)
    await mixed.prepare()
    peak = await mixed.run(MIX, min(PEAK_SECONDS, seconds))
    assert not peak.errors, peak.errors
    rate = SHARE_OF_PEAK * peak.requests() / peak.at_s
    gc.collect()
    gc.disable()
    cpu_before = cpu_s(pid)
    took, beside = await asyncio.gather(
        pages(mixed.client(), seconds), mixed.run(MIX, seconds, rate=rate)
    )
    used_s = cpu_s(pid) - cpu_before
    gc.enable()
    assert not beside.errors, beside.errors
    print(
        f"pages, one at a time, beside {rate:,.0f} requests/s (half of the peak of {CONNECTIONS} "
        f"connections): server {used_s / seconds * 100:.0f} % of a core, peak memory "
        f"{peak_rss_mib(pid):.0f} MiB"
    )
    rows = []
    results = []
    for kind, times in took.items():
        ordered = sorted(times)
        p50, p99 = (percentile(ordered, f) * 1e3 for f in (0.5, 0.99))
        rows.append([kind, f"{len(times):,}", f"{p50:.1f}", f"{p99:.1f}", f"{GOALS_MS[kind]:.0f}"])
        results.append(Result(f"large_store: page of 1,000 {kind}, p50", p50, GOALS_MS[kind], "ms"))
    print(table(["page of", "pages", "p50 ms", "p99 ms", "goal p50"], rows), flush=True)
    return results


def run(data_dir: Path, objects: int, gets: int, seconds: float) -> list[Result]:
    if not data_dir.exists():
        asyncio.run(load(data_dir, objects, key_of=key_of, value_of=value_of))
    compare(data_dir, objects, gets)
    with (
        running_store(existing=data_dir) as (_, pid),
        tempfile.TemporaryDirectory(prefix="o3bench") as directory,
    ):
        return asyncio.run(lists(data_dir, pid, seconds, Path(directory)))


def main(seconds: float | None = None) -> list[Result]:
    """With few `seconds` on a smaller store."""
    small = seconds is not None
    objects, gets = (20_000, 10_000) if small else (OBJECTS, GETS)
    tune_memory()
    with tempfile.TemporaryDirectory(prefix="o3bench") as name:
        return run(Path(name) / "data", objects, gets, seconds or SECONDS)


def command() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=int, default=OBJECTS)
    parser.add_argument("--gets", type=int, default=GETS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the listings")
    parser.add_argument("--data-dir", type=Path, help="made if it is not there, and kept")
    options = parser.parse_args()
    os.umask(0o077)
    tune_memory()
    with tempfile.TemporaryDirectory(prefix="o3bench") as name:
        data_dir = (options.data_dir or Path(name) / "data").absolute()
        run(data_dir, options.objects, options.gets, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(command())
