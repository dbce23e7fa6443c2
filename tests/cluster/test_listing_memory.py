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
