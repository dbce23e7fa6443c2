"""Streams that nobody names are collected, also where something of their rows cannot be read."""

from __future__ import annotations

import asyncio

from o3storage.cluster import _records
from o3storage.simulation import run
from tests.cluster.support import Rig
from tests.cluster.test_bodies import open_rows

STREAMS = 1500
"""Their rows fill several blocks of a table."""
ROT = slice(20_000, -8_000, 4096)
"""Where bits are flipped: rows that a start reads, and what says where blocks are, stay good."""


def test_damaged_rows_of_open_streams_are_collected_once_they_are_repaired() -> None:
    async def main() -> None:
        r = await Rig(11, background=True).start()
        b = await r.bucket()
        route = [r.machine.stream_route(b.bucket_id, b"k%04d" % n) for n in range(STREAMS)]
        session, now_ns = r.node.session, r.clock.wall_ns()
        streams = [n.to_bytes(16, "big") for n in range(STREAMS)]
        rows = [_records.encode_open(route[n], session, now_ns, streams[n]) for n in range(STREAMS)]
        await asyncio.gather(*(r.node.commit(route[n], rows[n]) for n in range(STREAMS)))
        await r.stop()
        r.disk.cached_share = 0.0
        tables = [n for n in r.disk.image.names if n.startswith("index/") and n.endswith(".table")]
        for path in tables:
            size = len(r.disk.image.lookup(path).cached)
            for at in range(*ROT.indices(size)):
                r.disk.rot(path, at, 0x10)
        await r.start()
        await r.settle(60)
        assert await open_rows(r) == 0
        assert not r.node.status()["open_streams_to_collect"]
        await r.stop()

    run(main(), 11)
