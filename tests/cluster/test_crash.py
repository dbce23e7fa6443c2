"""Power cuts of a whole node: what was acknowledged is there, nothing else is half there."""

from __future__ import annotations

import asyncio
import gc
import os
import random

import pytest

from o3storage import catalog
from o3storage.catalog import DeleteObject
from o3storage.cluster import ClusterError
from o3storage.simulation import run
from o3storage.storage import StoreError
from tests.cluster.support import OWNER, Rig, body_of

SLOW_SEEDS = int(os.environ.get("O3_CLUSTER_SEEDS", "40"))
WRITERS = 8


class Writer:
    """One client with keys of its own; knows what each may hold after a crash."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.number = number
        self.rng = rng
        self.value = number * 1_000_000
        self.acknowledged: dict[bytes, bytes | None] = {}
        self.in_flight: tuple[bytes, bytes | None] | None = None
        self.done = 0

    async def work(self, r: Rig, b: catalog.BucketInfo) -> None:
        rng = self.rng
        while True:
            key = b"w%d/%d" % (self.number, rng.randrange(4))
            if rng.random() < 0.2:
                body = None
            else:
                self.value += 1
                size = rng.choice([1, 700, 5000, 33_000, 300_000, 600_000])
                body = b"%d:" % self.value + body_of(self.value, size)
            self.in_flight = (key, body)
            if body is None:
                command = DeleteObject(b.bucket_id, b.epoch, key, r.clock.wall_ns(), OWNER)
                await r.node.submit(command)
            else:
                await r.put(b, key, body)
            self.acknowledged[key] = body
            self.in_flight = None
            self.done += 1

    async def check(self, r: Rig, b: catalog.BucketInfo) -> None:
        for key, body in self.acknowledged.items():
            found = await r.get(b, key)
            allowed = [body]
            if self.in_flight is not None and self.in_flight[0] == key:
                allowed.append(self.in_flight[1])
            assert found in allowed, f"{key!r} lost an acknowledged write"
            self.acknowledged[key] = found
        if self.in_flight is not None and self.in_flight[0] not in self.acknowledged:
            key, body = self.in_flight
            found = await r.get(b, key)
            assert found in (None, body)
            self.acknowledged[key] = found
        self.in_flight = None


async def check_sums(r: Rig, b: catalog.BucketInfo) -> None:
    """The counters agree with the listing, and every listed object is readable whole."""
    page = await r.node.query(catalog.list_objects(b.bucket_id))
    sums = await r.node.query(catalog.counts())
    assert sums.objects == len(page.entries)
    assert sums.size_bytes == sum(entry[3] for entry in page.entries)
    for entry in page.entries:
        body = await r.get(b, entry[0])
        assert body is not None and len(body) == entry[3]


async def rounds(seed: int, count: int) -> int:
    rng = random.Random(seed)
    r = await Rig(seed).start()
    b = await r.bucket()
    writers = [Writer(n, random.Random(f"{seed}/{n}")) for n in range(WRITERS)]
    for _ in range(count):
        tasks = [asyncio.ensure_future(w.work(r, b)) for w in writers]
        await asyncio.sleep(rng.choice([0.001, 0.01, 0.03]) * rng.random())
        if rng.random() < 0.3:
            await asyncio.gather(r.store.flush(), asyncio.sleep(rng.random() * 0.002))
        end = rng.random()
        if end < 0.6:
            await r.crash(rng)
        elif end < 0.8:
            await r.kill()
        else:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await r.stop()
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError | ClusterError | StoreError):
                raise result  # type: ignore[misc]
        await r.start()
        for writer in writers:
            await writer.check(r, b)
        await check_sums(r, b)
    await r.settle()
    left = await r.store.scan(b"\xfd", b"\xfe", 10)
    assert left == [], "streams of earlier runs are collected"
    await r.stop()
    return sum(writer.done for writer in writers)


@pytest.mark.parametrize("seed", range(8))
def test_acknowledged_writes_survive_power_cuts(seed: int) -> None:
    done = run(rounds(seed, 4), seed)
    assert done > 20, "something must have been acknowledged"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 100 + SLOW_SEEDS))
def test_acknowledged_writes_survive_many_power_cuts(seed: int) -> None:
    run(rounds(seed, 12), seed)
    gc.collect()  # disks of tens of MiB, in cycles that the collector is in no hurry about


def test_removing_the_sync_loses_acknowledged_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without the log's sync it does."""
    from o3storage.simulation import SimFile

    async def unsynced(self: SimFile) -> None:
        return None

    async def broken(seed: int) -> None:
        r = await Rig(seed).start()
        b = await r.bucket()
        monkeypatch.setattr(SimFile, "sync", unsynced)
        await r.put(b, b"k", b"v")
        disk = r.disk.crash(choose=lambda _change, _sector: False)
        monkeypatch.undo()
        await r._bury()
        r.disk = disk
        await r.start()
        assert await r.get(b, b"k") is None
        await r.stop()

    run(broken(1), 1)
