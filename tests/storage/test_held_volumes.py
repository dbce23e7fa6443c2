"""A volume whose frames wait for their placement is not compacted."""

from __future__ import annotations

import asyncio

from o3storage.simulation import SimDisk, run
from o3storage.storage._log import LogWriter

from .support import entry, frame, hard, store_on, stream_id
from .test_compaction import BULK, release, upload

ROOM_BYTES = 26_000
"""The next batch begins a log volume: so much of one is kept for the summaries of groups."""
SLOW_S = 0.05


def test_a_placement_that_waits_for_a_new_log_volume_holds_its_frames(monkeypatch):
    """The groups are restated in a new log volume before the batch that needed it is written."""

    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 2, 4)
            writer = store.open_stream(stream_id(1))
            await writer.write(frame(1, 0, 20_000))
            await store._bulk.sync()
            volume = next(v for v in store._core.volumes.values() if v.placed_bytes > 80_000)
            await upload(store, 3, 4)
            await release(store, 1, [2])
            index = 2
            while store._log._room > ROOM_BYTES:
                await store.append(1, hard(1), [entry(index, data=b"e" * 3000)])
                index += 1
            restate = LogWriter._restate
            compactions = []

            async def slowly(log):
                await restate(log)
                compactions.append(asyncio.ensure_future(store._compactor.compact(volume)))
                await asyncio.sleep(SLOW_S)

            monkeypatch.setattr(LogWriter, "_restate", slowly)
            await writer.sync(wait_placement=False)
            await store.append(1, hard(1), [entry(index, data=b"e" * 20_000)])
            assert volume.sealed
            assert len(await asyncio.gather(*compactions)) == 1
            assert bytes(await store.read_frame(stream_id(1), 0)) == frame(1, 0, 20_000).data
            assert not volume.holds

    run(main(), 1)
