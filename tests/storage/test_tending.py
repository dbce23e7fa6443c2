"""What the store does by itself goes on after an error that nobody thought of."""

from __future__ import annotations

import asyncio

from o3storage.simulation import SimDisk, run

from .support import open_store
from .test_compaction import BULK, release, upload


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
