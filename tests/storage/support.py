"""Opening a store on a simulated disk, and small makers."""

from __future__ import annotations

import contextlib

from o3storage.simulation import SimClock, SimDisk, SimEntropy, SimJobs, run
from o3storage.storage import Entry, HardState, SealedFrame, Store, StoreOptions

from .dict_index import DictIndex

KEY = bytes(range(32))


def small_options(**changes):
    options = StoreOptions(
        log_volume_bytes=64 * 1024,
        bulk_volume_bytes=256 * 1024,
        bulk_allocate_bytes=32 * 1024,
        background=False,
        reload_log_bytes=0,
    )
    for name, value in changes.items():
        setattr(options, name, value)
    return options


async def open_store(disk, *, seed=0, key=KEY, index=DictIndex.open, **options):
    return await Store.open(
        disk,
        disk_key=key,
        jobs=SimJobs(seed),
        clock=SimClock(),
        entropy=SimEntropy(f"{seed}/{disk._seed}/{disk.image.sequence}"),
        options=small_options(**options),
        open_index=index,
    )


@contextlib.asynccontextmanager
async def store_on(disk, **options):
    store = await open_store(disk, **options)
    try:
        yield store
    finally:
        await store.close()


def entry(index, term=1, data=None, kind=0):
    return Entry(index, term, kind, data if data is not None else b"entry %d" % index)


def stream_id(n):
    return n.to_bytes(16, "big")


def frame(stream, number=0, size=1000, last=True):
    body = bytes((stream * 7 + number * 3 + i) % 251 + 1 for i in range(min(size + 16, 997)))
    body = (body * ((size + 16) // len(body) + 1))[: size + 16]
    return SealedFrame(stream_id(stream), number, last, size, body)


def hard(term, vote=0, commit=0):
    return HardState(term, vote, commit)


__all__ = [
    "KEY",
    "SimDisk",
    "entry",
    "frame",
    "hard",
    "open_store",
    "run",
    "small_options",
    "store_on",
    "stream_id",
]
