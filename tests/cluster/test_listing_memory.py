"""What a listing has read is let go before others are served: any number of listings may wait, and
rows may have 32 KiB each."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest

from o3storage import catalog
from o3storage.cluster import _queries
from o3storage.simulation import run
from tests.cluster.support import rig

KEYS, HEADER_BYTES = 600, 14_000
"""8 MiB of rows, of which a step reads all but some."""
HELD_BYTES = 2 << 20
"""Less than the rows of a step, and more than the page that is made of them."""


@pytest.mark.parametrize("listing", [catalog.list_objects, catalog.list_versions])
def test_no_rows_are_held_while_others_are_served(
    monkeypatch: pytest.MonkeyPatch, listing: Any
) -> None:
    held: list[int] = []
    let_others = _queries.let_others

    async def look() -> None:
        held.append(tracemalloc.get_traced_memory()[0])
        await let_others()

    async def main() -> None:
        async with rig(31) as r:
            bucket = await r.bucket()
            headers = [{"content-disposition": f"{n:05}" + "h" * HEADER_BYTES} for n in range(KEYS)]
            for at in range(0, KEYS, 100):
                await asyncio.gather(
                    *(
                        r.put(bucket, b"k%04d" % n, b"x", headers=headers[n])
                        for n in range(at, at + 100)
                    )
                )
            monkeypatch.setattr(_queries, "let_others", look)
            tracemalloc.start()
            try:
                page = await r.node.query(listing(bucket.bucket_id))
            finally:
                tracemalloc.stop()
            assert len(page.entries) == KEYS
            assert held
            assert max(held) < HELD_BYTES

    run(main(), 31)


def test_few_listings_read_from_the_disk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_a_time, most = 0, 0

    async def read(store: Any, read: Any, at: Any = None) -> Any:
        nonlocal at_a_time, most
        at_a_time += 1
        most = max(most, at_a_time)
        await asyncio.sleep(0.001)
        at_a_time -= 1
        return await store.scan(read.low, read.high, read.limit, at=at)

    async def main() -> None:
        async with rig(32) as r:
            bucket = await r.bucket()
            await asyncio.gather(*(r.put(bucket, b"k%04d" % n, b"x") for n in range(100)))
            monkeypatch.setattr(_queries, "read_now", lambda *_: _queries.MISS)
            monkeypatch.setattr(_queries, "read_row", read)
            listings = 3 * _queries.MAX_DISK_SCANS
            pages = await asyncio.gather(
                *(r.node.query(catalog.list_objects(bucket.bucket_id)) for _ in range(listings))
            )
            assert [len(page.entries) for page in pages] == [100] * listings
            assert most == _queries.MAX_DISK_SCANS

    run(main(), 32)
