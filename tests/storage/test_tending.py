"""What the store does by itself goes on after an error that nobody thought of."""

from __future__ import annotations

import asyncio

from o3storage.simulation import SimDisk, run

from .support import frame, open_store, store_on, stream_id
from .test_compaction import BULK, release, upload, volumes


def test_flushes_and_compactions_outlive_a_defect():
    async def main():
        disk = SimDisk(1)
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))
        store = await open_store(disk, background=True, flush_log_bytes=1, **BULK)
        once = {}

        def failing(name, call):
            def fails_once(*args, **kwargs):
                if name not in once:
                    once[name] = True
                    raise ValueError(f"a defect in {name}")
                return call(*args, **kwargs)

            return fails_once

        compactor, flusher = store._compactor, store._flusher
        compactor.candidate = failing("candidate", compactor.candidate)
        flusher.due = failing("due", flusher.due)
        for stream in (1, 2):
            await upload(store, stream, 12)
        await release(store, 1, [1, 2])
        flushes = store.stats().flushes
        for stream in range(3, 8):
            await asyncio.sleep(10)
            await upload(store, stream, 12)
        assert sorted(once) == ["candidate", "due"] and len(told) == 2
        assert store.stats().compactions
        assert store.stats().flushes > flushes
        await store.close()

    run(main(), 3)


def test_a_volume_with_a_damaged_frame_is_freed_once_a_scrub_finds_it_repaired():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 2)
            volume = store._bulk.volume
            await upload(store, 2, 8)
            await release(store, 1, [2])
            assert volume.sealed
            disk.rot(volumes(disk)[0], 8192 + 5000)
            assert await store.compact() == 0
            assert volume.keep
            await store._tender._go_on_scrubbing()
            assert volume.keep
            again = store.open_stream(stream_id(1))
            await again.write(frame(1, 0, 20_000, last=False))
            await again.sync()
            assert await store.compact() == 0
            await store._tender._go_on_scrubbing()
            while await store.compact():
                pass
            assert volume.unlinked
            for n in range(2):
                data = await store.read_frame(stream_id(1), n)
                assert bytes(data) == frame(1, n, 20_000, last=n == 1).data

    run(main(), 3)
