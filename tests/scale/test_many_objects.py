"""Many small objects: opens quickly after a clean stop, and after a kill with much to replay, and serves GET, PUT and
LIST at random within the memory bound (P8). O3_SCALE_OBJECTS sets how many (500,000 in CI).

Speed is stated, not asserted: figures belong to bench/. Memory is a promise and is asserted.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from o3storage.cli._client import Client
from tests.scale.load import BUCKET, key_of, value_of
from tests.support.running_store import RunningStore

pytestmark = pytest.mark.scale

OBJECTS = int(os.environ.get("O3_SCALE_OBJECTS", "500000" if os.environ.get("CI") else "50000"))
DIRECTORY = os.environ.get("O3_SCALE_DIR")
"""A data directory loaded before (tests.scale.load), to be used as it is."""
MEMORY_BOUND_MIB = 512
CLIENTS = 16
REQUESTS = 4000
TAIL = 5
"""One object for so many is put before the kill, and not flushed: with half a million or more that is
as much as can be (StoreOptions.flush_entries, flush_memtable_bytes)."""
SAMPLE = 500


def peak_mib(pid: int) -> float:
    """Peak resident memory, mapped pages included."""
    text = Path(f"/proc/{pid}/status").read_text()
    return (
        int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    )


async def mixed(store: RunningStore) -> list[str]:
    """Random GET, PUT and LIST; returns what was wrong."""
    problems: list[str] = []
    chance = random.Random(3)
    plan = [(chance.choice("ggggppl"), chance.randrange(OBJECTS)) for _ in range(REQUESTS)]
    left = iter(plan)
    over: dict[int, bytes] = {}

    async def client() -> None:
        connection: Client = store.client()
        for kind, number in left:
            path = f"/{BUCKET}/{key_of(number).decode()}"
            if kind == "g":
                answer = await connection.request("GET", path)
                if answer.status != 200 or answer.body != over.get(number, value_of(number)):
                    problems.append(f"GET {number}: {answer.status}")
            elif kind == "p":
                # Same bytes again: concurrent readers then know what to expect.
                answer = await connection.request("PUT", path, body=value_of(number))
                if answer.status != 200:
                    problems.append(f"PUT {number}: {answer.status}")
            else:
                answer = await connection.request(
                    "GET",
                    f"/{BUCKET}",
                    query={"list-type": "2", "prefix": f"{number % 1000:03d}/", "max-keys": "100"},
                )
                if answer.status != 200 or b"<KeyCount>" not in answer.body:
                    problems.append(f"LIST {number}: {answer.status}")
        await connection.close()

    await asyncio.gather(*[client() for _ in range(CLIENTS)])
    return problems


async def walk(store: RunningStore) -> tuple[int, float, float]:
    """(keys in the whole listing, median seconds of a flat page, of a page of prefixes)."""
    connection = store.client()
    pages: list[float] = []
    token, keys = "", 0
    while True:
        query = {"list-type": "2", "max-keys": "1000"}
        if token:
            query["continuation-token"] = token
        started = time.perf_counter()
        answer = await connection.request("GET", f"/{BUCKET}", query=query)
        pages.append(time.perf_counter() - started)
        assert answer.status == 200
        keys += answer.body.count(b"<Key>")
        if b"<IsTruncated>true" not in answer.body:
            break
        token = answer.body.split(b"<NextContinuationToken>")[1].split(b"<")[0].decode()
    prefixes: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        query = {"list-type": "2", "delimiter": "/", "max-keys": "1000"}
        answer = await connection.request("GET", f"/{BUCKET}", query=query)
        prefixes.append(time.perf_counter() - started)
        assert answer.body.count(b"<CommonPrefixes>") == min(1000, OBJECTS)
    await connection.close()
    return keys, sorted(pages)[len(pages) // 2], sorted(prefixes)[2]


async def sample(store: RunningStore, bucket: str, count: int) -> None:
    """Some of the objects that were put into a bucket are there."""
    connection = store.client()
    for number in random.Random(4).sample(range(count), min(count, SAMPLE)):
        answer = await connection.request("GET", f"/{bucket}/{key_of(number).decode()}")
        assert answer.status == 200 and answer.body == value_of(number), number
    await connection.close()


def test_many_objects_within_the_memory_bound(tmp_path: Path) -> None:
    data_dir = Path(DIRECTORY) if DIRECTORY else tmp_path / "data"
    if not DIRECTORY:
        subprocess.run(
            [sys.executable, "-m", "tests.scale.load", str(data_dir), str(OBJECTS)], check=True
        )
    started = time.monotonic()
    with RunningStore(data_dir) as store:
        clean_s = time.monotonic() - started
        assert asyncio.run(mixed(store)) == []
        keys, flat_s, prefix_s = asyncio.run(walk(store))
        assert keys == OBJECTS
        peak = peak_mib(store.process.pid)
        store.kill()
    bucket = f"unflushed-{time.time_ns()}"
    died = subprocess.run(
        [sys.executable, "-m", "tests.scale.load", str(data_dir), str(OBJECTS // TAIL), bucket],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert died.returncode == -signal.SIGKILL
    unflushed = died.stdout.strip()
    started = time.monotonic()
    with RunningStore(data_dir) as store:
        crash_s = time.monotonic() - started
        asyncio.run(sample(store, bucket, int(unflushed.split()[0])))
        assert asyncio.run(mixed(store)) == []
        peak = max(peak, peak_mib(store.process.pid))
        assert store.stop() == 0
    print(
        f"{OBJECTS:,} objects: open after a clean stop {clean_s:.1f} s, after a kill {crash_s:.1f} "
        f"s with {unflushed} (process start included); peak memory {peak:.0f} MiB; page of 1,000 keys "
        f"{flat_s * 1e3:.1f} ms, of common prefixes {prefix_s * 1e3:.1f} ms (median)"
    )
    assert peak < MEMORY_BOUND_MIB
